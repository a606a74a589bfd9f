#!/usr/bin/env bash
# From nothing to a line under inspection: sets up, builds, teaches a model on pictures of good solar
# cells, and runs the daemon on a stream of good and defective ones. Asks nothing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

usage() {
    cat <<'TEXT'
usage: scripts/demo.sh [--seconds N] [--minutes M] [--again]

  --seconds N   how long the daemon runs (default 30)
  --minutes M   how long teaching may take, the first time (default 4)
  --again       teach anew

The first run takes some 10 minutes on 2 cores: it downloads 300 MB, builds, and teaches. Later runs
start inspecting at once. Everything it makes is in demo/.
TEXT
}

seconds=30 minutes=4 again=no
while (($#)); do
    case $1 in
        --seconds | --minutes)
            [[ ${2-} =~ ^[0-9]+([.][0-9]+)?$ ]] || die 64 "$1 takes a number" "for example: scripts/demo.sh $1 5"
            [[ $1 == --seconds ]] && seconds=$2 || minutes=$2
            shift
            ;;
        --again) again=yes ;;
        -h | --help) usage && exit 0 ;;
        *) die 64 "unknown argument '$1'" "see: scripts/demo.sh --help" ;;
    esac
    shift
done

scripts/setup.sh

say "Building inspectd (the first time takes some minutes)"
cargo build --release
inspectd=${CARGO_TARGET_DIR:-target}/release/inspectd

weights=weights/efficientnet_lite0.safetensors
if [[ ! -f $weights || weights/efficientnet_lite0.pth -nt $weights ]]; then
    say "Importing the weights of EfficientNet-Lite0"
    "$inspectd" import --from weights/efficientnet_lite0.pth --arch efficientnet_lite0 --out "$weights"
fi

mkdir -p demo
model=demo/solar_cells.safetensors
# A model of an older version may not fit this one: what cannot judge a picture is taught anew.
probe=$(find data/elpv_mono/train/good -name '*.png' -print -quit)
usable() { [[ -f $model ]] && "$inspectd" judge --model "$model" "$probe" >/dev/null 2>&1; }
if [[ $again == yes ]] || ! usable; then
    say "Teaching on $(find data/elpv_mono/train/good -name '*.png' | wc -l) pictures of good solar cells, at most $minutes minutes"
    "$inspectd" teach --images data/elpv_mono --out "$model" --minutes "$minutes"
else
    say "Using the model taught before ($model; --again teaches anew)"
fi

say "Inspecting for $seconds seconds: a stream of test pictures, good and defective"
exec python3 scripts/demo.py --inspectd "$inspectd" --model "$model" --data data/elpv_mono --dir demo --seconds "$seconds"
