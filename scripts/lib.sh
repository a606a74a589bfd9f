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
