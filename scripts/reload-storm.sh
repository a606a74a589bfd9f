#!/usr/bin/env bash
# Reloads one after the other while four lines run, every second one of a file with a mistake: is a frame lost,
# does memory grow?
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

usage() {
    cat <<'TEXT'
usage: scripts/reload-storm.sh [N] [--binary FILE]

  N               how many SIGHUPs (default 10000)
  --binary FILE   this inspectd (default: target/release/inspectd, else target/debug/inspectd)

Prints a line of JSON last; ends with 1 if something does not hold.
TEXT
}

reloads=10000 binary=target/release/inspectd
[[ -x $binary ]] || binary=target/debug/inspectd
while (($#)); do
    case $1 in
        --binary) binary=${2:?"--binary needs a file"} && shift ;;
        -h | --help) usage && exit 0 ;;
        *[!0-9]* | '') die 64 "unknown argument '$1'" "see: scripts/reload-storm.sh --help" ;;
        *) reloads=$1 ;;
    esac
    shift
done
((reloads >= 8)) || die 64 "a storm has at least 8 reloads" "for example: scripts/reload-storm.sh 10000"
[[ -x $binary ]] || die 66 "there is no $binary" "type: cargo build --release"
model=$(mktemp --suffix .safetensors)
trap 'rm -f "$model"' EXIT
toy_model "$binary" "$model"
say "Storm: $reloads reloads"
python3 scripts/endurance.py storm "$binary" "$model" "$reloads"
