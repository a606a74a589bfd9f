#!/usr/bin/env bash
# Everything that must hold before a change lands: format, lints, documentation, tests, tidiness.
# Ends with "N passed, M failed, K skipped" over all tests.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh
export RUST_BACKTRACE=${RUST_BACKTRACE_IN_TESTS:-0}

case ${1-} in
    "") ;;
    --no-setup) ;;
    -h | --help)
        echo "usage: scripts/test.sh [--no-setup]"
        echo "  --no-setup   this machine is set up already (scripts/setup.sh)"
        exit 0
        ;;
    *) die 64 "unknown argument '$1'" "see: scripts/test.sh --help" ;;
esac
[[ ${1-} == --no-setup ]] || scripts/setup.sh

say "Tidiness"
files() { git ls-files --cached --others --exclude-standard -- "$@"; }
failed=0
complain() {
    printf 'error: %s\n' "$1" >&2
    sed 's/^/       /' >&2
    failed=1
}
while read -r script; do
    bash -n "$script" || failed=1
    [[ $script == */lib.sh || -x $script ]] || complain "$script cannot be run" <<<"type: chmod +x $script"
done < <(files '*.sh' .ci/run)
while read -r script; do
    python3 -c 'import ast, sys; ast.parse(open(sys.argv[1]).read(), sys.argv[1])' "$script" || failed=1
done < <(files '*.py')
# Packages are asked for by name; which mirror answers is each machine's affair. Cargo.lock names the
# registry itself.
hosts='(pypi|pythonhosted|npmjs|crates|debian)[.](org|io|com)'
if found=$(files ':!Cargo.lock' ':!LICENSE*' | xargs -d '\n' grep -nIE "$hosts" 2>/dev/null); then
    complain "a package registry's host is named" <<<"$found"
fi
if found=$(files ':!scripts/test.sh' | xargs -d '\n' grep -nIE '(^|[^A-Za-z0-9_.])(/work/|/tmp/(wt|plan)/|\.\./shared)' 2>/dev/null); then
    complain "a path of somebody's own machine is named" <<<"$found"
fi
found=$(files | while read -r f; do [[ -f $f && $(stat -c %s "$f") -gt 1000000 ]] && echo "$f"; done || true)
[[ -z $found ]] || complain "files over 1 MB: weights and pictures are fetched, not committed" <<<"$found"
((failed == 0)) || die 1 "the tree is not tidy"
note "ok"

say "Format"
cargo fmt --check || die 1 "not formatted" "type: cargo fmt"
note "ok"

say "Lints"
cargo clippy --quiet --workspace --all-targets -- -D warnings

say "Documentation"
RUSTDOCFLAGS="-D warnings -A rustdoc::private-intra-doc-links" cargo doc --quiet --no-deps --lib --document-private-items

say "Tests"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
cargo test --workspace --no-fail-fast 2>&1 | tee "$log" || status=$?
summary=$(awk '/^test result: / {
    for (i = 2; i <= NF; i++) {
        if ($i == "passed;") passed += $(i - 1)
        if ($i == "failed;") failed += $(i - 1)
        if ($i == "ignored;") skipped += $(i - 1)
    }
} END { printf "%d passed, %d failed, %d skipped\n", passed, failed, skipped }' "$log")
echo "$summary"
exit "$status"
