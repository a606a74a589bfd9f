#!/usr/bin/env bash
# What a person with an NVIDIA GPU runs once: every kernel against its specification on the real driver,
# compute-sanitizer if it is there, networks against the CPU, and a table to keep.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

case ${1-} in
    "") ;;
    -h | --help)
        echo "usage: scripts/gpu-check.sh   (needs an NVIDIA GPU of compute capability 7.5 or newer, and its driver)"
        exit 0
        ;;
    *) die 64 "unknown argument '$1'" "see: scripts/gpu-check.sh --help" ;;
esac

say "The GPU"
cargo build --quiet --release
inspectd=${CARGO_TARGET_DIR:-target}/release/inspectd
found=$($inspectd doctor | grep -E "GPU|driver" || true)
echo "$found"
grep -q "cuda:0" <<<"$found" || die 69 "the driver shows no GPU" "nvidia-smi -L"
! grep -q "simulated" <<<"$found" || die 69 "this is the simulated GPU" "unset LD_LIBRARY_PATH"
command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,memory.total --format=csv

say "What it can do at most"
$inspectd bench --peak cuda:0

say "Every operation against its specification"
tests=$(cargo test --lib --no-run --message-format=json 2>/dev/null |
    sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -1)
GPU_TESTS=real "$tests" cuda:: frames:: || die 1 "an operation is wrong on this GPU"

if command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck initcheck synccheck; do
        say "compute-sanitizer $tool"
        GPU_TESTS=real compute-sanitizer --tool "$tool" --error-exitcode 1 "$tests" cuda::tests --test-threads 1
    done
else
    note "compute-sanitizer is not in PATH: left out"
fi

say "A whole judgement on both devices (milliseconds a picture, the copies included)"
model=${MODEL-}
if [[ -n $model && -n ${PICTURES-} ]]; then
    for device in cpu cuda:0; do
        echo "$device"
        $inspectd judge --json --device "$device" --model "$model" "$PICTURES" | tail -5
    done
else
    note "MODEL=part.safetensors PICTURES=folder/ scripts/gpu-check.sh judges pictures on both"
fi
$inspectd kernels
