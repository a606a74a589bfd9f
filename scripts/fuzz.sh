#!/usr/bin/env bash
# Feeds the parsers bytes that nobody would write, for a while each; a crash ends it with the input's path.
# Seeds are files that the parsers know; what is found is kept in target/fuzz-corpus for the next time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

TARGETS=(config weights model)
seconds=600
while (($#)); do
    case $1 in
        --seconds)
            seconds=${2-}
            [[ $seconds =~ ^[0-9]+$ ]] || die 64 "--seconds takes a number" "for example: scripts/fuzz.sh --seconds 60"
            shift
            ;;
        -h | --help)
            echo "usage: scripts/fuzz.sh [--seconds N]     (default: 600 for each of ${TARGETS[*]})"
            exit 0
            ;;
        *) die 64 "unknown argument '$1'" "see: scripts/fuzz.sh --help" ;;
    esac
    shift
done
command -v cargo-fuzz >/dev/null || die 69 "cargo-fuzz is not installed" "type: cargo install --locked cargo-fuzz"

seeds() {
    case $1 in
        config) cp config/inspectd.toml "$2"/ ;;
        weights) find tests/golden weights -maxdepth 2 \( -name '*.safetensors' -o -name '*.pth' \) -size -100k -exec cp {} "$2"/ \; ;;
        model) find tests/golden -name '*.safetensors' -size -100k -exec cp {} "$2"/ \; ;;
    esac
}

# Without a sanitizer, which only nightly toolchains have: panics, overflows and hangs are what is looked for.
for target in "${TARGETS[@]}"; do
    say "Fuzzing $target for $seconds s"
    corpus=target/fuzz-corpus/$target
    mkdir -p "$corpus"
    seeds "$target" "$corpus"
    KERNEL_ARCHS=80 cargo fuzz run --sanitizer none "$target" "$corpus" -- \
        -max_total_time="$seconds" -timeout=10 -rss_limit_mb=4096 -max_len=65536 -print_final_stats=1 2>&1 |
        tee "target/fuzz-$target.log" | grep -E 'stat::|panicked|ERROR|SUMMARY' ||
        die 1 "$target failed" "the input is under fuzz/artifacts/$target/, the log in target/fuzz-$target.log"
    if grep -qE 'panicked|ERROR: libFuzzer' "target/fuzz-$target.log"; then
        die 1 "$target failed" "the input is under fuzz/artifacts/$target/, the log in target/fuzz-$target.log"
    fi
done
say "No finding."
