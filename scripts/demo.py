"""The live half of scripts/demo.sh: lays out a stream of test pictures, writes the configuration,
runs the daemon on it, shows each verdict as it comes beside what the data set says, then asks the
daemon's own /metrics how it went, and drains it as systemd would, with SIGTERM."""

import argparse
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request

FRAMES_PER_SECOND = 5
GOOD, DEFECTIVE = 60, 40  # of a stream of 100; a real line has far fewer bad parts
COLOURS = {"good": "32", "unsure": "33", "bad": "31", "late": "35"}


def colour(text, verdict):
    plain = os.environ.get("NO_COLOR") or not sys.stdout.isatty()
    return text if plain else f"\033[{COLOURS.get(verdict, '0')}m{text}\033[0m"


def lay_out(data, frames):
    """Links frames/0000.png ... to test pictures in a fixed random order; returns their labels."""
    frames.mkdir(parents=True, exist_ok=True)
    for old in frames.glob("*.png"):
        old.unlink()
    order = random.Random(7)
    chosen = [(path, "good") for path in order.sample(sorted((data / "test/good").glob("*.png")), GOOD)]
    chosen += [(path, "defective") for path in order.sample(sorted((data / "test/defective").glob("*.png")), DEFECTIVE)]
    order.shuffle(chosen)
    for index, (path, _) in enumerate(chosen):
        (frames / f"{index:04d}.png").symlink_to(path.resolve())
    return [(path.name, label) for path, label in chosen]


def configuration(args, frames):
    """TOML's basic strings are JSON's."""
    source = (
        f'multifilesrc location="{frames}/%04d.png" index=0 loop=true '
        f'caps="image/png,framerate={FRAMES_PER_SECOND}/1" ! pngdec'
    )
    return f"""# Written by scripts/demo.py. config/inspectd.toml documents every key.
[daemon]
http = "127.0.0.1:0"
state_dir = {json.dumps(str(args.dir / "state"))}
log_format = "text"

[[line]]
name = "cells"
model = {json.dumps(str(args.model))}
source = {json.dumps(source)}
sync = true

[line.outputs]
verdicts = "-"
heatmaps = {json.dumps(str(args.dir / "heatmaps"))}
heatmaps_of = "unsure"
heatmaps_keep = 200
"""


def show(verdicts, labels, tally, stop):
    """One line a verdict, until the daemon closes its standard output."""
    for line in verdicts:
        try:
            v = json.loads(line)
        except ValueError:
            print(line, end="")
            continue
        name, label = labels[int(v.get("sequence", 0)) % len(labels)]
        verdict = v.get("verdict", "?")
        tally[(label, verdict)] = tally.get((label, verdict), 0) + 1
        score = v.get("score")
        score = f"{score:8.3f}" if isinstance(score, (int, float)) else "       -"
        latency = v.get("latency_ms")
        latency = f"{latency:6.1f} ms" if isinstance(latency, (int, float)) else ""
        print(f"  {colour(f'{verdict:7}', verdict)} score {score} {latency}   {name}, labelled {label}", flush=True)
    stop.set()


def fetch(state, path):
    address = (state / "http_address").read_text().strip()
    with urllib.request.urlopen(f"http://{address}{path}", timeout=5) as answer:
        return answer.read().decode()


def quantile(samples, name, q):
    """Upper bound of the histogram bucket that holds quantile q, in seconds."""
    buckets = []
    for key, value in samples:
        match = re.match(rf'{name}_bucket\{{.*le="([^"]+)"', key)
        if match:
            buckets.append((float(match[1].replace("+Inf", "inf")), value))
    buckets.sort()
    total = buckets[-1][1] if buckets else 0
    return next((bound for bound, count in buckets if total and count >= q * total), None)


def summarise(text):
    samples = []
    for line in text.splitlines():
        if line and not line.startswith("#"):
            key, value = line.rsplit(" ", 1)
            samples.append((key, float(value)))

    def total(name):
        return int(sum(value for key, value in samples if key.split("{")[0] == name))

    print(f"  frames captured {total('inspectd_frames_captured_total')}, dropped {total('inspectd_frames_dropped_total')}")
    for verdict in COLOURS:
        count = sum(v for k, v in samples if k.startswith("inspectd_verdicts_total") and f'verdict="{verdict}"' in k)
        print(f"  {colour(f'{verdict:7}', verdict)} {int(count)}")
    p50, p99 = (quantile(samples, "inspectd_frame_latency_seconds", q) for q in (0.5, 0.99))
    if p50 is not None:
        print(f"  capture to verdict: half within {p50 * 1000:g} ms, 99 % within {p99 * 1000:g} ms")


def main():
    parser = argparse.ArgumentParser()
    for name in ("inspectd", "model", "data", "dir"):
        parser.add_argument(f"--{name}", type=lambda p: pathlib.Path(p).resolve(), required=True)
    parser.add_argument("--seconds", type=float, required=True)
    args = parser.parse_args()

    state = args.dir / "state"
    for folder in (state, args.dir / "heatmaps"):
        folder.mkdir(parents=True, exist_ok=True)
    (state / "http_address").unlink(missing_ok=True)
    labels = lay_out(args.data, args.dir / "frames")
    config = args.dir / "inspectd.toml"
    config.write_text(configuration(args, args.dir / "frames"))
    log = args.dir / "inspectd.log"

    started = time.monotonic()
    with open(log, "w") as log_file:
        daemon = subprocess.Popen(
            [args.inspectd, "serve", "--config", config], stdout=subprocess.PIPE, stderr=log_file, text=True,
            start_new_session=True,  # Ctrl-C is ours: the daemon is drained, not cut off
        )
    tally, stop = {}, threading.Event()
    viewer = threading.Thread(target=show, args=(daemon.stdout, labels, tally, stop))
    viewer.start()
    metrics = None
    try:
        ended = stop.wait(args.seconds)
        if not ended:
            metrics = fetch(state, "/metrics")
    except KeyboardInterrupt:
        ended = False
        print()
    except OSError as e:
        print(f"error: the daemon's /metrics did not answer: {e}", file=sys.stderr)
    if daemon.poll() is None:
        daemon.send_signal(signal.SIGTERM)
    try:
        status = daemon.wait(timeout=20)
    except subprocess.TimeoutExpired:
        daemon.kill()
        status = "killed: it did not drain in 20 s"
    viewer.join(timeout=5)

    if metrics:
        print("\n\033[1m==>\033[0m What /metrics said:")
        summarise(metrics)
    if tally:
        print("\n\033[1m==>\033[0m Against the data set's labels:")
        for label in ("good", "defective"):
            said = ", ".join(f"{n} {verdict}" for (of, verdict), n in sorted(tally.items()) if of == label)
            print(f"  {label:9} cells were said to be: {said or '-'}")
    print(f"\n  heatmaps   {args.dir / 'heatmaps'}\n  config     {config}\n  log        {log}")
    if status != 0 or not tally:
        print(f"error: the daemon ended with {status} after {time.monotonic() - started:.0f} s", file=sys.stderr)
        for line in log.read_text(errors="replace").splitlines()[-8:]:
            print(f"       {line}", file=sys.stderr)
        return 70
    print("  the daemon drained and ended cleanly")
    return 0


if __name__ == "__main__":
    sys.exit(main())
