// The operator's page. It asks this daemon alone, changes nothing without the daemon's token, and goes on
// trying when the daemon is away.
"use strict";

const HISTORY = 1000;
const VERDICTS = ["good", "unsure", "bad", "late", "unjudged"];
const $ = (selector, root = document) => root.querySelector(selector);
const cards = new Map();
let token = sessionStorage.getItem("token");

const text = (node, value) => { if (node.textContent !== value) node.textContent = value; };
const colour = (verdict) => getComputedStyle(document.documentElement).getPropertyValue(`--${verdict}`).trim();
const number = (value) => value == null ? "–" : Number(value).toPrecision(4);

async function ask(path, options = {}) {
  const headers = token ? { Authorization: `Bearer ${token}`, ...options.headers } : options.headers;
  const answer = await fetch(path, { cache: "no-store", ...options, headers });
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(body.error ?? answer.statusText);
  return body;
}

// ---- lines

function card(name) {
  if (cards.has(name)) return cards.get(name);
  const node = $("#line-card").content.firstElementChild.cloneNode(true);
  const made = { name, node, points: [], thresholds: null, shown: -1 };
  text($(".name", node), name);
  $(".heat", node).addEventListener("change", () => picture(made, true));
  for (const which of ["unsure", "bad"]) $(`input.${which}`, node).addEventListener("input", () => whatIf(made));
  $("details", node).addEventListener("toggle", () => { sliders(made); whatIf(made); });
  $("#lines").append(node);
  const option = document.createElement("option");
  option.textContent = name;
  $("#filter").line.append(option);
  cards.set(name, made);
  ask(`/api/lines/${name}/history?n=${HISTORY}`).then((history) => {
    made.points = history.concat(made.points).slice(-HISTORY);
    draw(made);
  }).catch(() => {});
  return made;
}

function picture(made, at_once) {
  const live = $(".live", made.node);
  const sequence = made.points.at(-1)?.sequence;
  if (sequence === undefined || (sequence === made.shown && !at_once) || document.hidden) return;
  // One at a time: a slow link shows fewer pictures, not older ones.
  if (made.loading && !at_once) return;
  made.loading = true;
  made.shown = sequence;
  const heat = $(".heat", made.node).checked ? 1 : 0;
  // Shown once it is there, so that nothing flickers and a picture that is not made yet leaves the last one.
  const next = new Image();
  next.onload = () => { made.loading = false; live.src = next.src; };
  next.onerror = () => { made.loading = false; };
  next.src = `/lines/${made.name}/live.jpg?heat=${heat}&sequence=${sequence}`;
}

function judged(event) {
  const made = card(event.line);
  made.points.push(event);
  if (made.points.length > HISTORY) made.points.shift();
  made.thresholds = event.thresholds ?? made.thresholds;
  const verdict = $(".verdict", made.node);
  text(verdict, event.verdict.toUpperCase());
  verdict.className = `verdict v-${event.verdict}`;
  const part = event.part_id ? `part ${event.part_id}, ` : "";
  text($(".score", made.node), `${part}score ${number(event.score)}`);
  picture(made, false);
  made.dirty = true;
}

function health(report) {
  text($("#state"), report.ok ? report.state : `${report.state}, not well`);
  $("#state").className = `pill ${report.ok ? "ok" : "sick"}`;
  const faults = [];
  for (const line of report.lines) {
    const made = card(line.line);
    const state = $(".state", made.node);
    text(state, line.why ?? (line.ended ? "ended" : "runs"));
    state.className = `pill state ${line.ok ? "ok" : "sick"}`;
    if (line.why) faults.push(`${line.line}: ${line.why}`);
    if (line.device_fault) faults.push(`${line.line}: ${line.device_fault}`);
    const counts = $(".counts", made.node);
    const rows = [...VERDICTS, "captured", "dropped", "in_flight", "restarts"];
    counts.replaceChildren(...rows.map((key) => {
      const row = document.createElement("div");
      const [dt, dd] = [document.createElement("dt"), document.createElement("dd")];
      dt.textContent = key.replace("_", " ");
      dd.textContent = Number.isInteger(line[key]) ? line[key].toLocaleString("en") : number(line[key]);
      row.append(dt, dd);
      return row;
    }));
  }
  if (report.archive_fault) faults.push(`The archive takes nothing: ${report.archive_fault}`);
  banner(faults);
}

function banner(faults) {
  $("#banner").hidden = faults.length === 0;
  text($("#banner"), faults.join("\n"));
}

/// Scores from 0 up; the threshold of bad parts stands at two thirds, whatever the scores are.
function draw(made) {
  const canvas = $(".history", made.node);
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  if (!width || !made.thresholds) return;
  const ratio = devicePixelRatio || 1;
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  const paint = canvas.getContext("2d");
  paint.scale(ratio, ratio);
  const { unsure, bad } = made.thresholds;
  const points = made.points.slice(-Math.max(60, Math.floor(width / 3)));
  const scores = points.map((point) => point.score).filter((score) => score != null);
  const low = Math.min(0, unsure, ...scores);
  const top = low + (bad - low) * 1.5 || low + 1;
  const y = (score) => height - Math.min(1, Math.max(0, (score - low) / (top - low))) * height;
  for (const [verdict, from, to] of [["good", low, unsure], ["unsure", unsure, bad], ["bad", bad, top]]) {
    paint.globalAlpha = 0.14;
    paint.fillStyle = colour(verdict);
    paint.fillRect(0, y(to), width, y(from) - y(to));
  }
  paint.globalAlpha = 1;
  points.forEach((point, i) => {
    const x = width - (points.length - i) * 3 + 1;
    paint.fillStyle = colour(point.verdict);
    if (point.score == null) paint.fillRect(x - 1, 0, 3, 6);
    else paint.fillRect(x - 1, y(point.score) - 1.5, 3, 3);
  });
}

// ---- what other thresholds would have done

function sliderRange(made) {
  const scores = made.points.map((point) => point.score).filter((score) => score != null);
  const { unsure, bad } = made.thresholds;
  const low = Math.min(unsure, ...scores), high = Math.max(bad * 1.5, bad, ...scores);
  return [low, high > low ? high : low + 1];
}

function sliders(made) {
  if (!made.thresholds) return;
  const [low, high] = sliderRange(made);
  for (const which of ["unsure", "bad"]) {
    const slider = $(`input.${which}`, made.node);
    slider.value = Math.round((made.thresholds[which] - low) / (high - low) * 1000);
  }
  made.range = [low, high];
}

function whatIf(made) {
  if (!made.thresholds || !made.range || !$("details", made.node).open) return;
  const [low, high] = made.range;
  const at = (which) => low + $(`input.${which}`, made.node).value / 1000 * (high - low);
  let [unsure, bad] = [at("unsure"), at("bad")];
  if (unsure > bad) unsure = bad;
  text($(".unsure-value", made.node), number(unsure));
  text($(".bad-value", made.node), number(bad));
  const scored = made.points.filter((point) => point.score != null);
  const would = { good: 0, unsure: 0, bad: 0 }, was = { good: 0, unsure: 0, bad: 0 };
  for (const point of scored) {
    would[point.score < unsure ? "good" : point.score < bad ? "unsure" : "bad"] += 1;
    if (point.verdict in was) was[point.verdict] += 1;
  }
  const rows = [["", "good", "unsure", "bad"], ["were", was.good, was.unsure, was.bad],
    ["would have been", would.good, would.unsure, would.bad]];
  $(".what-if", made.node).replaceChildren(...rows.map((cells, i) => {
    const row = document.createElement("tr");
    row.append(...cells.map((value) => {
      const cell = document.createElement(i ? "td" : "th");
      cell.textContent = value;
      return cell;
    }));
    return row;
  }));
  text($(".snippet", made.node), `The last ${scored.length} parts. To put it in force, in the configuration of line "${made.name}":\n\n`
    + `[line.thresholds]\nunsure = ${Number(unsure.toPrecision(4))}\nbad = ${Number(bad.toPrecision(4))}\n\n`
    + "then: sudo systemctl reload inspectd");
}

// ---- rejects

let oldest = null;
let open_part = null;

async function gallery(more) {
  const filter = new FormData($("#filter"));
  const query = new URLSearchParams({ limit: 60 });
  for (const [key, value] of filter) if (value) query.set(key, value);
  if (more && oldest != null) query.set("before", oldest);
  try {
    const parts = await ask(`/api/parts?${query}`);
    $("#no-archive").hidden = true;
    oldest = parts.at(-1)?.before ?? oldest;
    $("#older").hidden = parts.length < 60;
    const tiles = parts.map(tile);
    more ? $("#gallery").append(...tiles) : $("#gallery").replaceChildren(...tiles);
  } catch (error) {
    $("#no-archive").hidden = false;
    text($("#no-archive"), error.message);
  }
}

function tile(part) {
  const node = document.createElement("button");
  node.className = "tile";
  const facts = document.createElement("small");
  facts.textContent = `${part.line} ${part.sequence}, ${new Date(part.captured_at).toLocaleString()}, ${number(part.score)}`;
  const verdict = document.createElement("b");
  verdict.className = `v-${part.verdict}`;
  verdict.textContent = part.review ? `${part.verdict}: ${part.review.replace("_", " ")}` : part.verdict;
  if (part.has_heatmap || part.has_image) {
    const image = document.createElement("img");
    image.loading = "lazy";
    image.alt = "";
    image.src = `/api/parts/${part.id}/${part.has_heatmap ? "heatmap.png" : "image.jpg"}`;
    node.append(image);
  }
  node.append(verdict, facts);
  node.addEventListener("click", () => show(part));
  return node;
}

function show(part) {
  open_part = part;
  text($("#part-told"), token ? "" : "To review, unlock first: the button at the top right.");
  const rows = [["line", part.line], ["sequence", part.sequence], ["part", part.part_id], ["captured", part.captured_at],
    ["verdict", part.verdict], ["reason", part.reason], ["score", number(part.score)], ["model", part.model_hash],
    ["review", part.review && `${part.review.replace("_", " ")} by ${part.reviewer ?? "?"}`]];
  text($("#part-facts"), rows.filter(([, value]) => value != null).map(([key, value]) => `${key} ${value}`).join(" · "));
  part_picture();
  if (!$("#part").open) $("#part").showModal();
}

function part_picture() {
  const heat = $("#part-heat").checked && open_part.has_heatmap;
  const shown = heat ? "heatmap.png" : open_part.has_image ? "image.jpg" : open_part.has_heatmap ? "heatmap.png" : null;
  if (shown) $("#part-picture").src = `/api/parts/${open_part.id}/${shown}`;
  else $("#part-picture").removeAttribute("src");
}

async function review(verdict) {
  try {
    const body = JSON.stringify({ review: verdict, reviewer: "page" });
    const headers = { "Content-Type": "application/json" };
    const part = await ask(`/api/parts/${open_part.id}/review`, { method: "POST", headers, body });
    show(part);
    text($("#part-told"), "Saved.");
    gallery(false);
  } catch (error) {
    text($("#part-told"), error.message);
  }
}

// ---- wiring

function unlock() {
  if (token) {
    token = null;
    sessionStorage.removeItem("token");
  } else {
    token = prompt("The daemon's token (the file that token_file names holds it)") || null;
    if (token) sessionStorage.setItem("token", token);
  }
  text($("#unlock"), token ? "unlocked" : "read-only");
}

function view(name) {
  for (const button of document.querySelectorAll("nav button")) button.classList.toggle("on", button.dataset.view === name);
  $("#lines").hidden = name !== "lines";
  $("#rejects").hidden = name !== "rejects";
  if (name === "rejects") gallery(false);
}

function listen() {
  const events = new EventSource("/api/events");
  events.addEventListener("health", (event) => health(JSON.parse(event.data)));
  events.addEventListener("verdict", (event) => judged(JSON.parse(event.data)));
  events.onerror = () => {
    text($("#state"), "daemon away");
    $("#state").className = "pill sick";
    banner(["The daemon does not answer. What is shown is old."]);
  };
}

setInterval(() => {
  for (const made of cards.values()) {
    if (!made.dirty) continue;
    made.dirty = false;
    draw(made);
    whatIf(made);
  }
}, 250);
addEventListener("resize", () => cards.forEach(draw));
document.addEventListener("visibilitychange", () => cards.forEach((made) => picture(made, false)));
for (const button of document.querySelectorAll("nav button")) button.addEventListener("click", () => view(button.dataset.view));
for (const button of document.querySelectorAll("[data-review]")) button.addEventListener("click", () => review(button.dataset.review));
$("#filter").addEventListener("change", () => gallery(false));
$("#older").addEventListener("click", () => gallery(true));
$("#part-close").addEventListener("click", () => $("#part").close());
$("#part-heat").addEventListener("change", part_picture);
$("#unlock").addEventListener("click", unlock);
text($("#unlock"), token ? "unlocked" : "read-only");
listen();
