#!/usr/bin/env bash
# A plant on one machine: two GigE Vision cameras behind cables that can be pulled, an RTSP camera that dies and
# comes back, a PLC for each line, an MQTT broker, Prometheus, and inspectd in the middle. All of it lives in
# network namespaces, so nothing is heard outside and nothing is left behind.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

usage() {
    cat <<'TEXT'
usage: scripts/plant.sh [--minutes N] [--check] [--binary FILE]

Runs until Ctrl-C, and prints where to look and how to break things.

  --minutes N     ends after N minutes
  --check         one minute (or --minutes): lets the RTSP camera die, pulls a cable, kills the broker and a PLC,
                  and looks whether every line came back and every count is right; the exit code says
  --binary FILE   this inspectd (default: target/release/inspectd, else target/debug/inspectd)

Needs root and: aravis-tools mosquitto mosquitto-clients prometheus python3-gi gir1.2-gst-rtsp-server-1.0
gstreamer1.0-plugins-{base,good,bad} libaravis-0.8-0 iproute2 curl, and scripts/setup.sh (pymodbus, weights).
TEXT
}

minutes=0 check=no binary=
while (($#)); do
    case $1 in
        --minutes) minutes=${2:?"--minutes needs a number"} && shift ;;
        --check) check=yes ;;
        --binary) binary=${2:?"--binary needs a file"} && shift ;;
        -h | --help) usage && exit 0 ;;
        *) die 64 "unknown argument '$1'" "see: scripts/plant.sh --help" ;;
    esac
    shift
done
[[ $minutes =~ ^[0-9]+$ ]] || die 64 "--minutes takes a whole number" "for example: scripts/plant.sh --minutes 10"
((EUID == 0)) || die 77 "only root can make network namespaces" "type: sudo scripts/plant.sh"
if [[ -z $binary ]]; then
    binary=target/release/inspectd
    [[ -x $binary ]] || binary=target/debug/inspectd
fi
[[ -x $binary ]] || die 66 "there is no $binary" "type: cargo build --release"
missing=()
for tool in arv-fake-gv-camera-0.8:aravis-tools mosquitto:mosquitto mosquitto_sub:mosquitto-clients \
    prometheus:prometheus ip:iproute2 curl:curl; do
    command -v "${tool%:*}" >/dev/null || missing+=("${tool#*:}")
done
# gi belongs to Debian's own Python.
python=/usr/bin/python3
"$python" -c 'import gi; gi.require_version("GstRtspServer", "1.0")' 2>/dev/null ||
    missing+=(python3-gi gir1.2-gst-rtsp-server-1.0)
((${#missing[@]} == 0)) || die 69 "these packages are missing: ${missing[*]}" "type: apt-get install ${missing[*]}"
[[ -d third_party/pymodbus ]] || die 69 "there is no pymodbus in third_party" "type: scripts/setup.sh --only peers"

# ---------------------------------------------------------------- namespaces

folder=$(mktemp -d)
plant=plant-$$
# The host's end of the cable to the plant, so that a browser here can look at it.
net=10.98.$(($$ % 250))
pids=()

end() {
    trap - EXIT INT TERM
    local pid space
    # The daemon first, so that it drains while its peers are there.
    [[ -z ${daemon-} ]] || { kill "$daemon" 2>/dev/null && wait "$daemon" 2>/dev/null; } || true
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    for space in "$plant" "$plant-cam1" "$plant-cam2"; do
        ip netns pids "$space" 2>/dev/null | xargs -r kill -9 2>/dev/null || true
        ip netns del "$space" 2>/dev/null || true
    done
    rm -rf "$folder"
}
trap end EXIT
trap 'exit 130' INT TERM

# there NAME COMMAND...: in the background in the plant's network, its output in NAME.log; sets $last.
there() {
    local name=$1
    shift
    ip netns exec "$plant" "$@" >>"$folder/$name.log" 2>&1 &
    last=$!
    pids+=("$last")
    # Its end is no news; the daemon's exit code is.
    [[ $name == inspectd ]] || disown "$last"
}
ask() { ip netns exec "$plant" curl -s --max-time 5 "$@"; }

say "Network"
ip netns add "$plant"
ip -n "$plant" link set lo up
ip link add "p$$" type veth peer name host netns "$plant"
ip address add "$net.1/24" dev "p$$"
ip link set "p$$" up
ip -n "$plant" address add "$net.2/24" dev host
ip -n "$plant" link set host up
for camera in 1 2; do
    ip netns add "$plant-cam$camera"
    # GigE cameras send packets of 9000 bytes.
    ip -n "$plant" link add "cam$camera" mtu 9000 type veth peer name eth0 mtu 9000 netns "$plant-cam$camera"
    ip -n "$plant" address add "10.99.$camera.1/24" dev "cam$camera"
    ip -n "$plant" link set "cam$camera" up
    ip -n "$plant-cam$camera" address add "10.99.$camera.2/24" dev eth0
    ip -n "$plant-cam$camera" link set eth0 up
    ip netns exec "$plant-cam$camera" arv-fake-gv-camera-0.8 -i eth0 -s "CAM$camera" >"$folder/cam$camera.log" 2>&1 &
    pids+=($!)
    disown $!
done

# ---------------------------------------------------------------- peers

say "Peers"
mqtt() { there mosquitto mosquitto -c "$folder/mosquitto.conf" && broker=$last; }
plc() {
    there "plc$1" env "PYTHONPATH=$PWD/third_party/pymodbus" "$python" tests/peers/modbus_server.py "502$1" "$folder/plc$1.json"
    plcs[$1]=$last
}
rtsp() { there rtsp "$python" scripts/plant/rtsp.py 8554 && camera3=$last; }
declare -A plcs
printf 'listener 1883 127.0.0.1\nallow_anonymous true\n' >"$folder/mosquitto.conf"
mqtt
rtsp
for line in 1 2 3; do plc "$line"; done
sed 's/interval: 5s/interval: 1s/' monitoring/prometheus.yml >"$folder/prometheus.yml"
cp monitoring/alerts.yml "$folder/"
there prometheus prometheus --config.file="$folder/prometheus.yml" --storage.tsdb.path="$folder/tsdb" --web.listen-address=0.0.0.0:9090

say "Daemon"
toy_model "$binary" "$folder/part.safetensors"
sources=(
    "aravissrc camera-name=10.99.1.2 ! video/x-raw,format=GRAY8,width=640,height=480,framerate=5/1"
    "aravissrc camera-name=10.99.2.2 ! video/x-raw,format=GRAY8,width=640,height=480,framerate=5/1"
    "rtspsrc location=rtsp://127.0.0.1:8554/cam protocols=tcp latency=100 ! rtpjpegdepay"
)
names=(gige1 gige2 rtsp)
{
    printf '[daemon]\nhttp = "0.0.0.0:9464"\nstate_dir = "state"\n\n[archive]\nfolder = "archive"\n\n[mqtt]\nbroker = "mqtt://127.0.0.1:1883"\n'
    for i in 0 1 2; do
        printf '\n[[line]]\nname = "%s"\nmodel = "part.safetensors"\nsource = "%s"\nstall_timeout_ms = 2000\n' "${names[i]}" "${sources[i]}"
        printf '\n[line.outputs]\nverdicts = "%s.jsonl"\n\n[line.modbus]\naddress = "127.0.0.1:502%d"\nhandshake = false\n' "${names[i]}" $((i + 1))
    done
} >"$folder/inspectd.toml"
"$binary" check --config "$folder/inspectd.toml" >/dev/null || die 78 "the plant's configuration is not understood by $binary"
there inspectd "$binary" serve --config "$folder/inspectd.toml"
daemon=$last

metric() { ask http://127.0.0.1:9464/metrics | awk -v m="$1" 'index($0, m) == 1 { n += $NF } END { print n + 0 }'; }
verdicts() { metric "inspectd_verdicts_total{line=\"$1\""; }
# until_more LINE N SECONDS: until the line has more than N verdicts.
until_more() {
    local limit=$((SECONDS + $3))
    until (($(verdicts "$1") > $2)); do
        kill -0 "$daemon" 2>/dev/null || die 70 "inspectd ended" "$(tail -n5 "$folder/inspectd.log")"
        ((SECONDS < limit)) || return 1
        sleep 0.1
    done
}
for name in "${names[@]}"; do
    until_more "$name" 0 60 || die 70 "line $name gives no verdicts" "$(grep -a "$name" "$folder/inspectd.log" | tail -n5)"
done

cat <<TEXT

    page              http://$net.2:9464/
    Prometheus        http://$net.2:9090/alerts
    verdicts, MQTT    ip netns exec $plant mosquitto_sub -t 'inspectd/#' -v
    PLC of line 1     tail -f $folder/plc1.json
    log               tail -f $folder/inspectd.log
    pull a cable      ip -n $plant link set cam1 down      (plug in: up)
    kill a camera     ip netns pids $plant-cam2 | xargs kill
    reload            edit $folder/inspectd.toml, then: kill -HUP $daemon

TEXT
until_end() { while ((SECONDS < $1)) && kill -0 "$daemon" 2>/dev/null; do sleep 0.2; done; }
if [[ $check == no ]]; then
    ((minutes > 0)) && until_end $((SECONDS + minutes * 60)) || until_end 2147483647
    exit 0
fi

# ---------------------------------------------------------------- check

say "Check"
((minutes > 0)) || minutes=1
finish=$((SECONDS + minutes * 60)) failed=0
ok() { printf '    ok      %s\n' "$*"; }
bad() { printf '    FAILED  %s\n' "$*" && failed=$((failed + 1)); }
holds() { if (($1)); then ok "$2"; else bad "$2"; fi; }
# Comes back by itself when the broker does.
there subscriber mosquitto_sub -t 'inspectd/+/verdict'
heard() { grep -ac '"verdict"' "$folder/subscriber.log" || true; }
# parts PLC [LINES]: of how many parts the PLC has heard, in what it wrote after so many lines.
parts() {
    tail -n "+$((${2:-0} + 1))" "$folder/plc$1.json" | "$python" -c 'import json, sys
seen = (json.loads(line)["registers"] for line in sys.stdin)
print(len({(r[0], r[1]) for r in seen if r[2]}))'
}

# back LINE WHAT: how long after its peer is back the line gives verdicts again; 6 s are allowed.
back() {
    local from ms before
    from=$(date +%s%N)
    before=$(verdicts "$1")
    if until_more "$1" "$before" 20; then
        ms=$((($(date +%s%N) - from) / 1000000))
        holds $((ms <= 6000)) "$2: judging again $ms ms after it was back"
    else
        bad "$2: no verdict for 20 s after it was back"
    fi
}
sleep 5
kill -9 "$camera3"
sleep 5
rtsp
back rtsp "RTSP camera dead for 5 s"
ip -n "$plant" link set cam1 down
sleep 5
ip -n "$plant" link set cam1 up
back gige1 "cable pulled for 5 s"
before=$(verdicts gige2)
kill -9 "$broker" "${plcs[2]}"
sleep 3
holds $(($(verdicts gige2) - before >= 10)) "broker and PLC dead for 3 s: the line judged on ($(($(verdicts gige2) - before)) parts)"
mqtt
lines=$(wc -l <"$folder/plc2.json")
plc 2
sleep 5
before=$(heard)
until_end "$finish"

scrape=$(ask http://127.0.0.1:9464/metrics)
sum() { awk -v m="inspectd_$1{line=\"$2\"" 'index($0, m) == 1 { n += $NF } END { print n + 0 }' <<<"$scrape"; }
for i in 0 1 2; do
    name=${names[i]}
    captured=$(sum frames_captured_total "$name") given=$(sum verdicts_total "$name")
    dropped=$(sum frames_dropped_total "$name") waiting=$(sum frames_in_flight "$name")
    holds $((captured > 0 && captured == given + dropped + waiting && $(sum ledger_unbalanced_total "$name") == 0)) \
        "$name: $captured captured = $given verdicts + $dropped dropped + $waiting in flight; $(sum camera_restarts_total "$name") camera restarts"
    holds $(($(sum 'camera_up' "$name"))) "$name: the camera is up"
    told=$(parts $((i + 1)))
    # PLC 2 was dead for 3 s and has 6 s to be found again, at 5 parts a second; what was judged just now may be on
    # its way.
    holds $((told >= given - 3 - (i == 1 ? 45 : 0))) "$name: its PLC heard of $told of $given parts"
done
holds $(($(parts 2 "$lines") > 20)) "gige2: the PLC that was killed hears again: of $(parts 2 "$lines") parts"
holds $((before > 0 && $(heard) > before + 50)) "MQTT: $(heard) verdicts heard, $(($(heard) - before)) of them since the broker was back"
scrapes=$(ask 'http://127.0.0.1:9090/api/v1/query' --data-urlencode 'query=sum(sum_over_time(up{job="inspectd"}[30s]))' -G |
    sed -n 's/.*"value":\[[^,]*,"\([0-9.]*\)"\].*/\1/p')
holds $((${scrapes:-0} >= 25)) "Prometheus: ${scrapes:-0} of 30 scrapes"
kill "$daemon"
code=0
wait "$daemon" || code=$?
daemon=
holds $((code == 0)) "SIGTERM: ended with $code"
for plc in 1 2 3; do
    # OK, NG, READY.
    coils=$(tail -n1 "$folder/plc$plc.json" | "$python" -c 'import json, sys; print(*json.loads(sys.stdin.readline())["coils"])')
    holds $(($([[ $coils == "False True False" ]] && echo 1 || echo 0))) "PLC $plc after the stop: OK NG READY = $coils"
done
if ((failed > 0)); then tail -n15 "$folder/inspectd.log"; fi
say "$failed failed"
((failed == 0))
