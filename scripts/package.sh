#!/usr/bin/env bash
# Makes the Debian package: target/debian/inspectd_VERSION_ARCH.deb. Cargo.toml says what is in it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

CARGO_DEB=3.8.0

usage() {
    cat <<TEXT
usage: scripts/package.sh [--debug] [--version V] [--out FOLDER]

  --debug        of the debug build, hardly compressed: for trying the package itself
  --version V    the package's version instead of Cargo.toml's, e.g. 0.1.0-2
  --out FOLDER   where the package goes (default: target/debian)

Prints the package's path last. Needs cargo-deb $CARGO_DEB, which it builds into target/tools if it is not there.
TEXT
}

profile=release fast=() version=() out=target/debian
while (($#)); do
    case $1 in
        --debug) profile=dev fast=(--fast) ;;
        --version) version=(--deb-version "${2:?"--version needs a version, e.g. 0.1.0-2"}") && shift ;;
        --out) out=${2:?"--out needs a folder"} && shift ;;
        -h | --help) usage && exit 0 ;;
        *) die 64 "unknown argument '$1'" "see: scripts/package.sh --help" ;;
    esac
    shift
done
command -v dpkg-shlibdeps >/dev/null || die 69 "there is no dpkg-shlibdeps" "type: sudo apt-get install dpkg-dev"

tool=target/tools/bin/cargo-deb
if [[ $("$tool" --version 2>/dev/null) != *"$CARGO_DEB"* ]]; then
    say "cargo-deb $CARGO_DEB"
    cargo install cargo-deb --quiet --version "$CARGO_DEB" --locked --root target/tools
fi

say "Building ($profile)"
cargo build --quiet --profile "$profile" --bin inspectd

say "Packing"
mkdir -p "$out"
# The tables for backtraces stay in: a fault report from a plant without names is worth little.
"$tool" --quiet --no-build --no-strip --no-dbgsym --profile "$profile" "${fast[@]}" "${version[@]}" --output "$out/" >/dev/null
# The newest is the one just made.
package=$(find "$out" -maxdepth 1 -name 'inspectd_*.deb' -printf '%T@ %p\n' | sort -n | tail -n1 | cut -d' ' -f2-)
note "$(dpkg-deb --field "$package" Package Version Architecture Installed-Size | tr '\n' ' ')"
echo "$package"
