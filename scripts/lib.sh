# shellcheck shell=bash
# Shared by the scripts here: how they speak and how they fail. Sourced, not run.

say() { printf '\033[1m==>\033[0m %s\n' "$*"; }
note() { printf '    %s\n' "$*"; }

# die CODE SENTENCE...: one line of what happened, further lines of what to type.
die() {
    local code=$1
    shift
    printf 'error: %s\n' "$1" >&2
    shift
    local line
    for line in "$@"; do printf '       %s\n' "$line" >&2; done
    exit "$code"
}

# retry TIMES COMMAND...: a registry hiccup or a second apt run must not end an install.
retry() {
    local times=$1 i
    shift
    for ((i = 1; i <= times; i++)); do
        "$@" && return 0
        ((i < times)) && note "attempt $i of $times failed; trying again in $((i * 3)) s" && sleep $((i * 3))
    done
    return 1
}

# toy_model BINARY FILE: a model of GStreamer-like stripes, taught in seconds. Its verdicts mean nothing; what
# is around it is tested with it.
toy_model() {
    local binary=$1 model=$2 pictures
    [[ -e weights || -n ${INSPECTD_WEIGHTS-} ]] || scripts/setup.sh --only weights
    pictures=$(mktemp -d)
    python3 - "$pictures" <<'PYTHON'
import random, sys
random.seed(1)
for picture in range(24):
    pixels = bytes(80 + x // 8 % 8 * 10 + random.randrange(16) for _ in range(64) for x in range(64) for _ in range(3))
    with open(f"{sys.argv[1]}/{picture:02}.ppm", "wb") as file:
        file.write(b"P6 64 64 255\n" + pixels)
PYTHON
    "$binary" teach --images "$pictures" --out "$model" --input 64 --minutes 0.1 >/dev/null 2>&1 ||
        die 70 "no model could be taught" "type: $binary teach --images FOLDER --out $model --input 64"
    rm -rf "$pictures"
}
