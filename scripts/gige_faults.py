#!/usr/bin/env python3
"""GigE Vision cameras whose cable is pulled and that are killed, again and again.

Two of aravis' fake cameras run in network namespaces, so that nothing of it leaves this machine, with a daemon that
watches both. Prints for each fault and length of outage how long the first camera took to give frames again, then
how the second one fared, and ends with 1 where a recovery took longer than 6 s, a ledger did not balance or the
second camera noticed. Needs root and: apt install aravis-tools iproute2

  scripts/gige_faults.py --inspectd target/debug/inspectd --model part.safetensors --rounds 3 --outages 1,5,60
"""
import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

RECOVERY_S = 6.0
DAEMON = "inspectd-gige"
CAMERAS = (1, 2)


def run(*command):
    subprocess.run(command, check=True)


def network():
    """Each camera's namespace and the daemon's are joined by a cable of their own."""
    run("ip", "netns", "add", DAEMON)
    run("ip", "-n", DAEMON, "link", "set", "lo", "up")
    for i in CAMERAS:
        run("ip", "netns", "add", f"{DAEMON}{i}")
        run("ip", "link", "add", f"pc{i}", "netns", DAEMON, "type", "veth", "peer", f"cam{i}", "netns", f"{DAEMON}{i}")
        run("ip", "-n", DAEMON, "addr", "add", f"10.99.{i}.1/24", "dev", f"pc{i}")
        run("ip", "-n", f"{DAEMON}{i}", "addr", "add", f"10.99.{i}.2/24", "dev", f"cam{i}")
        run("ip", "-n", DAEMON, "link", "set", f"pc{i}", "mtu", "9000", "up")
        run("ip", "-n", f"{DAEMON}{i}", "link", "set", f"cam{i}", "mtu", "9000", "up")


def camera(i):
    command = ["ip", "netns", "exec", f"{DAEMON}{i}", "arv-fake-gv-camera-0.8", "-i", f"cam{i}", "-s", f"CAM{i}"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


LINE = """
[[line]]
name = "cam{i}"
model = "{model}"
deadline_ms = 2000
source = "aravissrc camera-name=10.99.{i}.2 ! video/x-raw,format=GRAY8,width=512,height=512,framerate=4/1"
[line.outputs]
verdicts = "cam{i}.jsonl"
"""


class Daemon:
    """`inspectd serve` in its namespace; its HTTP is asked from there as well."""

    def __init__(self, folder, inspectd, model):
        self.folder = folder
        lines = "".join(LINE.format(i=i, model=model) for i in CAMERAS)
        with open(f"{folder}/c.toml", "w") as config:
            config.write('[daemon]\nhttp = "127.0.0.1:0"\nstate_dir = "state"\n' + lines)
        with open(f"{folder}/log", "w") as log:
            command = ["ip", "netns", "exec", DAEMON, inspectd, "serve", "--config", f"{folder}/c.toml"]
            self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log)
        self.address = self.wait("an address", lambda: open(f"{folder}/state/http_address").read().strip())

    def wait(self, what, find, limit_s=120):
        until = time.monotonic() + limit_s
        while time.monotonic() < until:
            try:
                if found := find():
                    return found
            except OSError:
                pass
            time.sleep(0.02)
        sys.exit(f"never came: {what}\n{open(f'{self.folder}/log').read()[-3000:]}")

    def samples(self, name, line):
        with urllib.request.urlopen(f"http://{self.address}/metrics", timeout=5) as answer:
            text = answer.read().decode()
        start = f'inspectd_{name}{{line="{line}"'
        pairs = (sample.rsplit(" ", 1) for sample in text.splitlines() if sample.startswith(start))
        return {series: float(value) for series, value in pairs}

    def sum(self, name, line):
        return sum(self.samples(name, line).values())

    def restarts(self, line):
        found = self.samples("camera_restarts_total", line).items()
        return ", ".join(f"{series.split('reason=')[1].split(chr(34))[1]} {n:.0f}" for series, n in found if n)

    def latencies(self, line):
        with open(f"{self.folder}/{line}.jsonl") as verdicts:
            return [json.loads(verdict)["latency_ms"] for verdict in verdicts if verdict.endswith("\n")]


def percentile_99(values):
    return sorted(values)[int(len(values) * 0.99)] if values else float("nan")


def campaign(daemon, cameras, rounds, outages):
    """Whether all went as it should."""
    captured = lambda line: daemon.sum("frames_captured_total", line)
    daemon.wait("frames", lambda: min(captured("cam1"), captured("cam2")) > 8)
    calm = len(daemon.latencies("cam2"))
    well = True
    cable = ("ip", "-n", f"{DAEMON}1", "link", "set", "cam1")
    for fault in ("cable pulled", "camera killed"):
        for outage in outages:
            took = []
            for _ in range(rounds):
                if fault == "cable pulled":
                    run(*cable, "down")
                else:
                    cameras[1].kill()
                    cameras[1].wait()
                time.sleep(outage)
                if fault == "cable pulled":
                    run(*cable, "up")
                else:
                    cameras[1] = camera(1)
                since, before = time.monotonic(), captured("cam1")
                daemon.wait("a frame", lambda: captured("cam1") > before)
                took.append(time.monotonic() - since)
                # Frames have to flow for 3 s before the next fault counts as a first one.
                before = captured("cam1")
                daemon.wait("frames", lambda: captured("cam1") > before + 16)
            took.sort()
            middle, worst = took[len(took) // 2], took[-1]
            print(f"{fault} {rounds} times for {outage:g} s: a frame after {middle:.2f} s (median), {worst:.2f} s (worst); "
                  f"restarts so far: {daemon.restarts('cam1') or 'none'}", flush=True)
            well &= worst <= RECOVERY_S
    for line in ("cam1", "cam2"):
        # One scrape each would not be of one instant, so a difference may be frames on their way.
        ends = lambda: sum(daemon.sum(name, line) for name in ("verdicts_total", "frames_dropped_total"))
        missing = captured(line) - ends()
        unbalanced, late = daemon.sum("ledger_unbalanced_total", line), daemon.sum("deadline_misses_total", line)
        print(f"{line}: {captured(line):.0f} captured, {missing:.0f} on their way, ledger unbalanced {unbalanced:.0f} times, "
              f"late {late:.0f}, restarts: {daemon.restarts(line) or 'none'}")
        well &= unbalanced == 0 and abs(missing) <= 12
    latencies = daemon.latencies("cam2")
    print(f"cam2: p99 {percentile_99(latencies[:calm]):.1f} ms before, {percentile_99(latencies[calm:]):.1f} ms during")
    well &= not daemon.restarts("cam2") and daemon.sum("deadline_misses_total", "cam2") == 0
    return well


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--inspectd", default="target/release/inspectd")
    arguments.add_argument("--model", required=True)
    arguments.add_argument("--rounds", type=int, default=20)
    arguments.add_argument("--outages", default="1,5,60", help="seconds")
    arguments.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = arguments.parse_args()
    if not args.inside:
        if os.geteuid() != 0:
            sys.exit("network namespaces need root: sudo scripts/gige_faults.py …")
        network()
        try:
            sys.exit(subprocess.run(["ip", "netns", "exec", DAEMON, sys.executable, *sys.argv, "--inside"]).returncode)
        finally:
            for name in (DAEMON, *(f"{DAEMON}{i}" for i in CAMERAS)):
                subprocess.run(["ip", "netns", "del", name], check=False)
    outages = [float(s) for s in args.outages.split(",")]
    cameras = {i: camera(i) for i in CAMERAS}
    with tempfile.TemporaryDirectory() as folder:
        daemon = Daemon(folder, os.path.abspath(args.inspectd), os.path.abspath(args.model))
        try:
            well = campaign(daemon, cameras, args.rounds, outages)
            daemon.process.send_signal(signal.SIGTERM)
            since = time.monotonic()
            code = daemon.process.wait(30)
            print(f"stopped in {time.monotonic() - since:.2f} s with {code}")
        finally:
            for process in (daemon.process, *cameras.values()):
                process.kill()
    sys.exit(0 if well and code == 0 else 1)


if __name__ == "__main__":
    main()
