#!/usr/bin/env bash
# The Debian package and its unit under a real systemd, in a container (systemd-nspawn) with Debian 12: install,
# start, reload, hang, crash, stop, upgrade, remove, purge. Prints a figure for each step.
#
# What a container on a build machine cannot prove: MemoryMax and TasksMax (cgroup controllers are not
# delegated), DeviceAllow, LimitMEMLOCK above the caller's own.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

usage() {
    cat <<'TEXT'
usage: scripts/test-systemd.sh [--release] [--keep]

  --release   tests the release build's package; without, the debug build's
  --keep      leaves the container running at the end, and says how to get in

Needs root, the Debian packages systemd-container and debootstrap, and, the first time, 1 GB in target/rootfs
and a network to fill it.
TEXT
}

build=(--debug) keep=no
while (($#)); do
    case $1 in
        --release) build=() ;;
        --keep) keep=yes ;;
        -h | --help) usage && exit 0 ;;
        *) die 64 "unknown argument '$1'" "see: scripts/test-systemd.sh --help" ;;
    esac
    shift
done
((EUID == 0)) || die 77 "only root can boot a container" "type: sudo scripts/test-systemd.sh"
missing=()
for tool in systemd-nspawn:systemd-container debootstrap:debootstrap nsenter:util-linux; do
    command -v "${tool%:*}" >/dev/null || missing+=("${tool#*:}")
done
((${#missing[@]} == 0)) || die 69 "these packages are missing: ${missing[*]}" "type: apt-get install ${missing[*]}"

# ---------------------------------------------------------------- root file system, once

ROOT=target/rootfs
INSIDE=(systemd systemd-sysv dbus procps curl ca-certificates gstreamer1.0-plugins-base gstreamer1.0-plugins-good libgstreamer-plugins-base1.0-0)
stamp=$ROOT/.made-of-$(sha256sum <<<"${INSIDE[*]}" | cut -c1-16)
if [[ ! -e $stamp ]]; then
    say "Debian 12 into $ROOT (once)"
    rm -rf "$ROOT"
    mirror=$(apt-get indextargets --format '$(SITE)' 2>/dev/null | head -n1)
    debootstrap --variant=minbase bookworm "$ROOT" ${mirror:+"$mirror"} >"$ROOT.log" 2>&1 ||
        die 69 "debootstrap failed" "its log: $ROOT.log"
    cp /etc/resolv.conf "$ROOT/etc/resolv.conf"
    retry 3 chroot "$ROOT" env DEBIAN_FRONTEND=noninteractive apt-get -y -q install --no-install-recommends "${INSIDE[@]}" \
        >>"$ROOT.log" 2>&1 || die 69 "the packages cannot be installed into $ROOT" "the log: $ROOT.log"
    chroot "$ROOT" apt-get clean
    touch "$stamp"
fi

# ---------------------------------------------------------------- packages, model, container

say "Packages"
shared=$(mktemp -d)
old=$(scripts/package.sh "${build[@]}" --version 0.1.0-1 --out "$shared" | tail -n1)
new=$(scripts/package.sh "${build[@]}" --version 0.1.0-2 --out "$shared" | tail -n1)
note "$(basename "$old"), $(basename "$new"): $(du -h "$old" | cut -f1)"
[[ ${#build[@]} -gt 0 ]] && binary=target/debug/inspectd || binary=target/release/inspectd
toy_model "$binary" "$shared/part.safetensors"

cat >"$shared/inspectd.toml" <<'TOML'
[daemon]
http = "127.0.0.1:9464"
drain_ms = 3000

[[line]]
name = "cam1"
model = "/var/lib/inspectd/part.safetensors"
source = "videotestsrc is-live=true ! video/x-raw,format=RGB,width=160,height=120,framerate=10/1"

[line.thresholds]
unsure = 1e6
bad = 1e7

[line.outputs]
verdicts = "/var/lib/inspectd/verdicts.jsonl"
TOML

say "Boot"
console=$shared/console
# A tmpfs on /run, in a mount namespace of its own: nspawn refuses where the host was not booted by systemd.
unshare -m bash -c 'mount -t tmpfs tmpfs /run && exec systemd-nspawn -q -D "$1" -b --volatile=overlay \
    --bind-ro="$2":/mnt --private-network --machine=inspectd-test --register=no --keep-unit --console=pipe' \
    bash "$PWD/$ROOT" "$shared" >"$console" 2>&1 &
nspawn=$!
leader=
end() {
    # Killing nspawn would leave its systemd behind.
    [[ -z $leader ]] || kill -9 "$leader" 2>/dev/null || true
    wait "$nspawn" 2>/dev/null || true
    rm -rf "$shared"
}
trap end EXIT

# until_true SECONDS COMMAND...: as soon as it holds.
until_true() {
    local limit=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < limit)) || return 1
        sleep 0.1
    done
}
find_leader() {
    local parent=$nspawn child
    # unshare runs bash, which becomes nspawn; its child is the container's first process.
    for child in $(pgrep -P "$parent"); do
        [[ $(cat "/proc/$child/comm") == systemd ]] && leader=$child && return
    done
    return 1
}
inside() { nsenter -t "$leader" -m -u -i -n -p -C -- "$@"; }
booted() { [[ $(inside systemctl is-system-running) =~ ^(running|degraded)$ ]]; }
until_true 60 find_leader || die 70 "the container did not start" "$(tail -n5 "$console")"
until_true 60 booted || die 70 "the container's systemd did not come up" "$(tail -n5 "$console")"
note "systemd $(inside systemctl --version | sed -n '1s/systemd \([^ ]*\).*/\1/p')"

# ---------------------------------------------------------------- steps

failed=0 started=0
step() { started=$(date +%s%N) && name=$1; }
took() { printf '%d.%02d s' $((($(date +%s%N) - started) / 1000000000)) $((($(date +%s%N) - started) / 10000000 % 100)); }
ok() { printf '    ok      %-48s %s\n' "$name" "$*"; }
bad() {
    printf '    FAILED  %-48s %s\n' "$name" "$*"
    failed=$((failed + 1))
    inside journalctl -u inspectd -n 8 --no-pager -o cat | sed 's/^/              /'
}
# check EXPECTED FOUND FIGURE: one line of the report.
check() { if [[ $2 == "$1" ]]; then ok "$3"; else bad "expected '$1', found '$2'"; fi; }
property() { inside systemctl show -P "$1" inspectd; }
metric() { inside curl -s http://127.0.0.1:9464/metrics | awk -v m="$1" 'index($0, m) == 1 { n += $2 } END { print n + 0 }'; }
active() { [[ $(property ActiveState) == active ]]; }
judges() { (($(metric inspectd_verdicts_total) > 0)); }
config() { inside tee /etc/inspectd/inspectd.toml >/dev/null; }

say "Package"
step "install"
inside dpkg -i "/mnt/$(basename "$old")" >"$shared/dpkg" 2>&1 || bad "$(tail -n3 "$shared/dpkg")"
check "inspectd:inspectd 750 disabled inactive" \
    "$(inside stat -c '%U:%G %a' /var/lib/inspectd) $(property UnitFileState) $(property ActiveState)" \
    "$(took); user made, neither enabled nor started"
step "the configuration that comes with it"
check 78 "$(inside inspectd check --config /etc/inspectd/inspectd.toml >"$shared/check" 2>&1; echo $?)" "refused: there is no model yet"

say "Unit"
inside install -o inspectd -g inspectd -m 644 /mnt/part.safetensors /var/lib/inspectd/
config <"$shared/inspectd.toml"
step "start"
inside systemctl enable --now inspectd 2>/dev/null || bad "systemctl start failed"
figure=$(took)
until_true 20 judges || bad "no verdict"
check "active running" "$(property ActiveState) $(property SubState)" "READY after $figure, a verdict after $(took)"
step "what it may"
status() { inside cat "/proc/$(property MainPID)/status" | awk -v k="$1:" '$1 == k { print $2 }'; }
check "0000000000000000 1 2" "$(status CapEff) $(status NoNewPrivs) $(status Seccomp)" \
    "uid $(status Uid), no capability, NoNewPrivs, seccomp, $(inside systemd-analyze security inspectd 2>/dev/null | sed -n 's/.*inspectd.service: \([0-9.]*\).*/exposure \1/p')"

step "20 reloads, each over when reload returns"
late=0 slowest=0
for i in {1..20}; do
    sed "s/^unsure = .*/unsure = 1000$i/; s/^bad = .*/bad = 2000$i/" "$shared/inspectd.toml" | config
    from=$(date +%s%N)
    inside systemctl reload inspectd || late=$((late + 100))
    ms=$((($(date +%s%N) - from) / 1000000))
    ((ms <= slowest)) || slowest=$ms
    [[ $(metric 'inspectd_config_reloads_total{result="applied"}') == "$i" ]] || late=$((late + 1))
done
check "0 0" "$late $(property NRestarts)" "slowest $slowest ms"
step "a reload with a mistake"
hash=$(inside curl -s http://127.0.0.1:9464/metrics | grep '^inspectd_config_hash_info')
sed 's/^unsure/unsrue/' "$shared/inspectd.toml" | config
inside systemctl reload inspectd 2>/dev/null && answer=accepted || answer=refused
check "refused active $hash" "$answer $(property ActiveState) $(inside curl -s http://127.0.0.1:9464/metrics | grep '^inspectd_config_hash_info')" \
    "refused with its place, the configuration before stays in force"
config <"$shared/inspectd.toml"
inside systemctl reload inspectd || true

restarted() { (($(property NRestarts) > $1)) && active && judges; }
step "hang (SIGSTOP): the watchdog starts it again"
before=$(property NRestarts)
inside kill -STOP "$(property MainPID)"
until_true 60 restarted "$before" && ok "judging again after $(took), WatchdogSec $(property WatchdogUSec)" || bad "it was not started again"
step "crash (SIGKILL)"
before=$(property NRestarts)
inside kill -KILL "$(property MainPID)"
until_true 30 restarted "$before" && ok "judging again after $(took), RestartSec $(property RestartUSec)" || bad "it was not started again"

step "stop: what is in flight is judged"
inside systemctl stop inspectd
inside truncate -s 0 /var/lib/inspectd/verdicts.jsonl
inside systemctl start inspectd
until_true 20 judges || true
sleep 1
started=$(date +%s%N)
inside systemctl stop inspectd
figure=$(took)
frames=$(inside journalctl -u inspectd -n 5 -o cat --no-pager | sed -n 's/.*Stopped.*frames=\([0-9]*\).*/\1/p' | tail -n1)
verdicts=$(inside wc -l /var/lib/inspectd/verdicts.jsonl | cut -d' ' -f1)
check "inactive success 0 $verdicts" "$(property ActiveState) $(property Result) $(property ExecMainStatus) $frames" "$figure; $frames frames captured, $verdicts verdicts"

say "Package again"
step "upgrade: runs on, the edited configuration stays"
inside systemctl start inspectd
echo "# edited" | inside tee -a /etc/inspectd/inspectd.toml >/dev/null
pid=$(property MainPID)
inside dpkg -i "/mnt/$(basename "$new")" >"$shared/dpkg" 2>&1 || bad "$(tail -n3 "$shared/dpkg")"
figure=$(took)
until_true 20 judges || true
check "0.1.0-2 active yes # edited" \
    "$(inside dpkg-query -W -f '${Version}' inspectd) $(property ActiveState) $([[ $(property MainPID) != "$pid" ]] && echo yes) $(inside tail -n1 /etc/inspectd/inspectd.toml)" \
    "$figure, judging again after $(took)"
step "remove: stopped, configuration and state stay"
inside dpkg -r inspectd >"$shared/dpkg" 2>&1 || bad "$(tail -n3 "$shared/dpkg")"
check "inactive no yes yes" \
    "$(inside systemctl is-active inspectd || true) $(inside test -e /usr/bin/inspectd && echo yes || echo no) $(inside test -e /etc/inspectd/inspectd.toml && echo yes) $(inside test -e /var/lib/inspectd/part.safetensors && echo yes)" "$(took)"
step "install again: as before"
inside dpkg -i "/mnt/$(basename "$new")" >"$shared/dpkg" 2>&1 || bad "$(tail -n3 "$shared/dpkg")"
inside systemctl start inspectd || true
until_true 20 judges || true
check "active # edited" "$(property ActiveState) $(inside tail -n1 /etc/inspectd/inspectd.toml)" "$(took)"
step "purge: configuration and cache go, models stay"
inside dpkg -P inspectd >"$shared/dpkg" 2>&1 || bad "$(tail -n3 "$shared/dpkg")"
check "no no yes" \
    "$(for p in /etc/inspectd/inspectd.toml /var/cache/inspectd /var/lib/inspectd/part.safetensors; do inside test -e $p && echo yes || echo no; done | xargs)" \
    "$(took); $(grep -o 'models and archive are left' "$shared/dpkg" || true)"
step "nothing of it is left running"
check "" "$(inside pgrep -x inspectd || true)$(inside systemctl --failed --plain --no-legend | grep inspectd || true)" ""

if [[ $keep == yes ]]; then
    say "The container runs until you press Enter: nsenter -t $leader -m -u -i -n -p -C -- bash"
    read -r
fi
say "$failed of the steps failed"
((failed == 0))
