#!/usr/bin/env bash
# Four lines at 5 frames a second for a while: does memory grow, is a frame lost, is one late?
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

usage() {
    cat <<'TEXT'
usage: scripts/soak.sh [--minutes N] [--binary FILE]

  --minutes N     how long (default 60). Below 20 the slope of memory is mostly chance; its error is printed
  --binary FILE   this inspectd (default: target/release/inspectd, else target/debug/inspectd)

Prints a line of JSON last; ends with 1 if something does not hold.
TEXT
}

minutes=60 binary=target/release/inspectd
[[ -x $binary ]] || binary=target/debug/inspectd
while (($#)); do
    case $1 in
        --minutes) minutes=${2:?"--minutes needs a number"} && shift ;;
        --binary) binary=${2:?"--binary needs a file"} && shift ;;
        -h | --help) usage && exit 0 ;;
        *) die 64 "unknown argument '$1'" "see: scripts/soak.sh --help" ;;
    esac
    shift
done
[[ $minutes =~ ^[1-9][0-9]*$ ]] || die 64 "--minutes takes a whole number" "for example: scripts/soak.sh --minutes 60"
[[ -x $binary ]] || die 66 "there is no $binary" "type: cargo build --release"
model=$(mktemp --suffix .safetensors)
trap 'rm -f "$model"' EXIT
toy_model "$binary" "$model"
say "Soak: $minutes min"
python3 scripts/endurance.py soak "$binary" "$model" "$minutes"
