"""What scripts/soak.sh and scripts/reload-storm.sh run: a daemon under load, watched from outside.

    endurance.py soak  BINARY MODEL MINUTES
    endurance.py storm BINARY MODEL RELOADS

Prints figures as they come and one line of JSON last; ends with 1 if something does not hold.
"""

import http.client
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

LINES, FPS = 4, 5
# GLib's pool lets threads go that were idle for 15 s, and makes them again; a scrape has a socket open.
SWAY = 2


class Daemon:
    """`inspectd serve` with four lines of test pictures."""

    def __init__(self, binary, model, folder):
        self.folder = pathlib.Path(folder)
        self.model = os.path.abspath(model)
        self.configure()
        command = [os.path.abspath(binary), "serve", "--config", self.folder / "c.toml"]
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("INSPECTD_LOG", "NOTIFY_"))}
        self.log = open(self.folder / "log", "w")
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=self.log)
        address = self.folder / "state/http_address"
        until = time.monotonic() + 60
        while not (address.exists() and address.read_text().endswith("\n")):
            if self.process.poll() is not None or time.monotonic() > until:
                sys.exit("inspectd did not start:\n" + (self.folder / "log").read_text()[-2000:])
            time.sleep(0.05)
        self.http = http.client.HTTPConnection(address.read_text().strip(), timeout=10)

    def text(self, bad=1e7, extra=""):
        lines = "".join(
            f'[[line]]\nname = "line{i}"\nmodel = "{self.model}"\ndeadline_ms = 400\n'
            f'source = "videotestsrc is-live=true ! video/x-raw,format=RGB,width=320,height=240,framerate={FPS}/1"\n'
            f"[line.thresholds]\nunsure = 1e6\nbad = {bad}\n"
            f'[line.outputs]\nverdicts = "line{i}.jsonl"\n'
            for i in range(LINES)
        )
        # INFO would write a line for every bad part.
        return f'[daemon]\nhttp = "127.0.0.1:0"\nstate_dir = "state"\nlog_level = "error"\n{lines}{extra}'

    def configure(self, text=None):
        """In one step, as an editor does."""
        fresh = self.folder / "c.toml.new"
        if isinstance(text, bytes):
            fresh.write_bytes(text)
        else:
            fresh.write_text(self.text() if text is None else text)
        fresh.rename(self.folder / "c.toml")

    def scrape(self):
        self.http.request("GET", "/metrics")
        sums = {}
        for sample in self.http.getresponse().read().decode().splitlines():
            if not sample.startswith("#"):
                series, value = sample.rsplit(" ", 1)
                name, _, labels = series.partition("{")
                sums[name] = sums.get(name, 0) + float(value)
                if name == "inspectd_config_reloads_total":
                    sums[labels.split('"')[1]] = float(value)
                if name == "inspectd_frames_dropped_total" and value != "0":
                    sums[labels] = float(value)
        return sums

    def state(self):
        """Resident memory in kB, threads, open files."""
        pid = self.process.pid
        status = dict(line.split(":\t", 1) for line in open(f"/proc/{pid}/status") if ":\t" in line)
        return int(status["VmRSS"].split()[0]), int(status["Threads"]), len(os.listdir(f"/proc/{pid}/fd"))

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(30)
        lost = 0
        for i in range(LINES):
            numbers = [json.loads(line)["sequence"] for line in open(self.folder / f"line{i}.jsonl")]
            lost += len(set(range(numbers[-1] + 1)) - set(numbers))
        return code, lost


def balance(sums):
    """captured - judged - dropped - in flight over all lines, and how often the daemon's own check failed."""
    get = lambda name: sums.get("inspectd_" + name, 0)  # noqa: E731
    missing = get("frames_captured_total") - get("verdicts_total") - get("frames_dropped_total")
    return missing - get("frames_in_flight"), get("ledger_unbalanced_total")


def slope(samples):
    """Least squares of kB over seconds: MB per day, and its standard error (taking samples as independent)."""
    n = len(samples)
    mean_t = sum(t for t, _ in samples) / n
    mean_y = sum(y for _, y in samples) / n
    spread = sum((t - mean_t) ** 2 for t, _ in samples)
    k = sum((t - mean_t) * (y - mean_y) for t, y in samples) / spread
    rest = sum((y - mean_y - k * (t - mean_t)) ** 2 for t, y in samples)
    to_mb_per_day = 86400 / 1024
    return k * to_mb_per_day, (rest / max(n - 2, 1) / spread) ** 0.5 * to_mb_per_day


def report(figures, conditions):
    figures["ok"] = all(conditions.values())
    for name, holds in conditions.items():
        print(f"    {'ok     ' if holds else 'FAILED '} {name}")
    print(json.dumps(figures))
    sys.exit(0 if figures["ok"] else 1)


def soak(daemon, minutes):
    start, samples, flat = time.monotonic(), [], set()
    # A quarter, but not more than two minutes: plugins are loaded, pools touched, queues once filled.
    warm = min(minutes * 15, 120)
    while (elapsed := time.monotonic() - start) < minutes * 60:
        rss, threads, files = daemon.state()
        if elapsed > warm:
            samples.append((elapsed, rss))
            flat.add((threads, files))
        if int(elapsed) % 30 == 0:
            print(f"    {elapsed:5.0f} s  {rss} kB, {threads} threads, {files} files")
        time.sleep(1)
    sums = daemon.scrape()
    missing, unbalanced = balance(sums)
    code, lost = daemon.end()
    k, error = slope(samples)
    verdicts = sums["inspectd_verdicts_total"]
    figures = {
        "minutes": minutes, "lines": LINES, "fps": FPS, "verdicts": verdicts, "rss_kb": samples[-1][1],
        "slope_mb_per_day": round(k, 2), "standard_error": round(error, 2),
        "threads_and_files": sorted(flat), "dropped": sums["inspectd_frames_dropped_total"],
        "late": sums["inspectd_deadline_misses_total"], "lost": lost,
    }  # fmt: skip
    report(
        figures,
        {
            f"memory grows by {k:.2f} MB a day (+- {error:.2f}): at most 1, or no more than chance": k <= max(1, 2 * error),
            "threads and files are flat": all(max(of) - min(of) <= SWAY for of in zip(*flat)),
            "the ledger balances": missing == 0 and unbalanced == 0,
            "every frame was judged, in time": figures["dropped"] == 0 and figures["late"] == 0 and lost == 0,
            "it ended with 0": code == 0,
        },
    )


def storm(daemon, reloads):
    invalid = [
        daemon.text(extra="[nonsense]\n"),
        daemon.text().replace("unsure", "unsrue"),
        daemon.text(bad=-1),
        daemon.text().replace(daemon.model, "/nonexistent.safetensors"),
        b"\xff\xfe" + os.urandom(2000),
        daemon.text()[:-20],
        "",
    ]
    before, results, slowest = None, {"applied": 0.0}, 0.0
    warm = min(200, reloads // 4)
    start = time.monotonic()
    for i in range(reloads):
        if i == warm:
            before = daemon.state()
        daemon.configure(invalid[i // 2 % len(invalid)] if i % 2 else daemon.text(bad=1e7 + 1 + i))
        asked = time.monotonic()
        daemon.process.send_signal(signal.SIGHUP)
        # One after the other: signals that come while one is handled would be one.
        while daemon.scrape()["inspectd_config_reloads_total"] <= i:
            if time.monotonic() - asked > 10:
                sys.exit(f"reload {i} was never answered:\n" + (daemon.folder / "log").read_text()[-2000:])
            time.sleep(0.001)
        slowest = max(slowest, time.monotonic() - asked)
        if (i + 1) % 500 == 0:
            print(f"    {i + 1} reloads, {time.monotonic() - start:.0f} s, {daemon.state()}")
    took = time.monotonic() - start
    after, sums = daemon.state(), daemon.scrape()
    results = {k: sums[k] for k in ("applied", "unchanged", "invalid", "needs_restart", "failed", "no_camera") if k in sums}
    missing, unbalanced = balance(sums)
    code, lost = daemon.end()
    growth = after[0] / before[0] - 1
    figures = {
        "reloads": reloads, "seconds": round(took, 1), "results": results, "slowest_ms": round(slowest * 1e3, 1),
        "verdicts": sums["inspectd_verdicts_total"], "dropped": sums["inspectd_frames_dropped_total"],
        "late": sums["inspectd_deadline_misses_total"], "lost": lost,
        "before_rss_threads_files": before, "after": after, "growth": round(growth, 4),
    }  # fmt: skip
    report(
        figures,
        {
            "half were taken over, half refused": results["applied"] == reloads - reloads // 2 and results["invalid"] == reloads // 2,
            f"no frame was lost or dropped in {figures['verdicts']:.0f}": lost == 0 and figures["dropped"] == 0,
            "the ledger balances": missing == 0 and unbalanced == 0,
            f"resident memory {growth:+.2%}: within 1 %": abs(growth) <= 0.01,
            "threads and files are flat": all(abs(x - y) <= SWAY for x, y in zip(before[1:], after[1:])),
            "it ended with 0": code == 0,
        },
    )


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)
    what, binary, model, amount = sys.argv[1:5]
    with tempfile.TemporaryDirectory() as folder:
        daemon = Daemon(binary, model, folder)
        try:
            {"soak": soak, "storm": storm}[what](daemon, int(amount))
        finally:
            daemon.process.kill()
