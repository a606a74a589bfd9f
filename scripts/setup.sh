#!/usr/bin/env bash
# Prepares a machine to build and try inspectd. Says what it does; a second run changes nothing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

STEPS=(system rust nvrtc weights data peers)

usage() {
    cat <<'TEXT'
usage: scripts/setup.sh [--no-apt] [--only STEP]

Steps, in order:
  system   Debian packages: compiler, GStreamer headers and plugins, pip, Prometheus
  rust     checks that cargo is there and new enough (installs nothing)
  nvrtc    NVIDIA's runtime compiler 12.9 into third_party/nvrtc; build.rs compiles the GPU kernels with it
  weights  EfficientNet-Lite0 with ImageNet weights into weights/ (Apache-2.0)
  data     demo pictures of solar cells into data/elpv_mono (CC BY-NC-SA 4.0)
  peers    what the tests talk to: mosquitto and Chromium (Debian packages), pymodbus (BSD) into third_party/pymodbus

  --no-apt      installs no system package; says what is missing instead
  --only STEP   only this step

What is downloaded is pinned by hash in scripts/requirements/ and stays out of git.
DEMO_SEED=N splits the demo pictures differently (default 7); remove data/elpv_mono first.
TEXT
}

apt=yes only=
while (($#)); do
    case $1 in
        --no-apt) apt=no ;;
        --only)
            only=${2-}
            [[ " ${STEPS[*]} " == *" $only "* && -n $only ]] ||
                die 64 "--only takes one of: ${STEPS[*]}" "for example: scripts/setup.sh --only nvrtc"
            shift
            ;;
        -h | --help) usage && exit 0 ;;
        *) die 64 "unknown argument '$1'" "see: scripts/setup.sh --help" ;;
    esac
    shift
done

# Two set-ups at once would tread on each other's half-unpacked folders.
mkdir -p third_party
exec 9>third_party/.lock
flock -n 9 || { note "another setup.sh is running here; waiting for it" && flock 9; }

# ---------------------------------------------------------------- system

# libc6-dev and pkg-config by name: without recommended packages gcc brings neither.
# cmake, nasm: libjpeg-turbo is built from source, its 3.x is newer than most distributions' own.
# plugins-bad: bayer2rgb, h264parse; plugins-good: v4l2src, rtspsrc, jpegdec, pngdec, multifilesrc.
# libgstrtspserver: tests/cameras.rs kills and freezes an RTSP server.
# prometheus: tests/monitoring lets a real one scrape a daemon, and promtool reads the rules. Debian starts
# it as a service too, which no test needs: systemctl disable --now prometheus.
# systemd: tests/systemd.rs lets systemd-analyze read the unit, also where systemd is not what runs.
PACKAGES=(
    gcc libc6-dev pkg-config ca-certificates cmake make nasm
    libgstreamer1.0-dev libgstreamer-plugins-base1.0-dev
    gstreamer1.0-plugins-base gstreamer1.0-plugins-good gstreamer1.0-plugins-bad
    libgstrtspserver-1.0-dev prometheus systemd
)

installed() { [[ $(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null) == installed ]]; }
has_pip() { python3 -m pip --version >/dev/null 2>&1; }

# apt_install STEP PACKAGE...: those that are missing.
apt_install() {
    local step=$1 missing=() p
    shift
    for p in "$@"; do installed "$p" || missing+=("$p"); done
    if ((${#missing[@]} == 0)); then
        note "all there"
        return
    fi
    note "missing: ${missing[*]}"
    local as_root=()
    ((EUID == 0)) || as_root=(sudo)
    local command="${as_root[*]:+sudo }apt-get install --no-install-recommends ${missing[*]}"
    [[ $apt == yes ]] || die 69 "--no-apt was given and packages are missing" "type: $command"
    if ((EUID != 0)); then
        command -v sudo >/dev/null || die 69 "not root, and there is no sudo" "as root, type: ${command#sudo }"
        # Without a terminal nobody can answer sudo's question.
        [[ -t 0 ]] || as_root=(sudo -n)
    fi
    local run=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -y -q -o DPkg::Lock::Timeout=300)
    retry 3 "${run[@]}" update >/dev/null || die 69 "apt-get update failed" "look at its messages above, then type: scripts/setup.sh --only $step"
    # Container images delete downloaded packages after every apt run; a second run at the same
    # time then fails half way. Trying again is enough.
    retry 3 "${run[@]}" install --no-install-recommends "${missing[@]}" >/dev/null ||
        die 69 "apt-get could not install the packages" "type: $command"
    note "installed"
}

step_system() {
    say "System packages"
    if ! command -v dpkg-query >/dev/null; then
        if command -v cc >/dev/null && pkg-config --exists 'gstreamer-app-1.0 >= 1.22' && has_pip; then
            note "not Debian, but a C compiler, GStreamer 1.22 and pip are here"
            return
        fi
        die 69 "this is no Debian or Ubuntu, and something of this is missing: cc, GStreamer >= 1.22 with headers, pip" \
            "install what your distribution calls these, then run scripts/setup.sh again:" \
            "${PACKAGES[*]} python3-pip"
    fi
    local pip=()
    has_pip || pip=(python3 python3-pip)
    apt_install system "${PACKAGES[@]}" "${pip[@]}"
}

# ---------------------------------------------------------------- rust

step_rust() {
    say "Rust"
    local want found
    want=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    if ! command -v cargo >/dev/null; then
        [[ -x $HOME/.cargo/bin/cargo ]] && die 69 "cargo is installed but not in PATH" "type: . \"\$HOME/.cargo/env\""
        die 69 "there is no cargo" "install Rust $want or newer with rustup (https://rustup.rs), open a new shell, and run this again"
    fi
    found=$(cargo --version | cut -d' ' -f2)
    if [[ $(printf '%s\n' "$want" "$found" | sort -V | head -n1) != "$want" ]]; then
        die 69 "cargo is $found; inspectd needs $want or newer" "type: rustup update stable"
    fi
    note "cargo $found"
}

# ---------------------------------------------------------------- downloads

# fetch NAME DEST: the pinned packages of scripts/requirements/NAME.txt, unpacked by
# scripts/unpack.py. The stamp holds the pins' hash, so new pins replace what is there, and a
# folder that was half unpacked has none.
fetch() {
    local name=$1 dest=$2 pins=scripts/requirements/$1.txt key stamp
    key=$(cat "$pins" scripts/unpack.py | sha256sum | cut -c1-16)
    stamp=$dest/.from-$name-$key
    if [[ -f $stamp ]]; then
        note "already in $dest"
        return
    fi
    command -v python3 >/dev/null ||
        die 69 "there is no python3; it only downloads and unpacks, inspectd itself needs none" \
            "type: scripts/setup.sh --only system    (or: apt-get install python3 python3-pip)"
    has_pip || die 69 "python3 has no pip" "type: scripts/setup.sh --only system    (or: apt-get install python3-pip)"
    local tmp
    tmp=$(mktemp -d)
    # shellcheck disable=SC2064 # the folder's name as it is now
    trap "rm -rf '$tmp'" EXIT
    retry 3 python3 -m pip download -q --disable-pip-version-check --no-deps --only-binary=:all: \
        --require-hashes -d "$tmp" -r "$pins" ||
        die 69 "pip could not download what $pins pins" \
            "check the network and pip's settings (index, proxy), then type: scripts/setup.sh --only ${step#step_}"
    python3 scripts/unpack.py "$name" "$tmp" "$dest" || die 74 "could not unpack into $dest" "is the disk full? then: scripts/setup.sh --only ${step#step_}"
    touch "$stamp"
    rm -rf "$tmp"
}

step_nvrtc() {
    say "NVRTC 12.9, the compiler of the GPU kernels (NVIDIA's CUDA EULA; 90 MB to download)"
    case $(uname -m) in
        x86_64 | aarch64) fetch nvrtc third_party/nvrtc ;;
        *) note "none for $(uname -m): built without GPU kernels, inspectd runs on the CPU" ;;
    esac
}

step_weights() {
    say "EfficientNet-Lite0 with ImageNet weights (Apache-2.0; 17 MB)"
    fetch weights weights
}

step_data() {
    say "Demo pictures: solar cells, good and defective (90 MB)"
    note "ELPV data set, ZAE Bayern; licence CC BY-NC-SA 4.0: for trying things out, not for commercial use"
    fetch elpv data/elpv_mono
}

step_peers() {
    say "Peers of the tests: mosquitto, Chromium (100 MB), pymodbus (BSD-3-Clause; 0.2 MB)"
    if command -v chromedriver >/dev/null; then
        note "chromedriver is here"
    elif command -v dpkg-query >/dev/null; then
        apt_install peers chromium chromium-driver
    else
        die 69 "chromedriver is missing" "install Chromium and its driver, then type: scripts/setup.sh --only peers"
    fi
    if command -v mosquitto >/dev/null && command -v mosquitto_sub >/dev/null; then
        note "mosquitto is here"
    elif command -v dpkg-query >/dev/null; then
        apt_install peers mosquitto mosquitto-clients
    else
        die 69 "mosquitto or mosquitto_sub is missing" "install what your distribution calls them, then type: scripts/setup.sh --only peers"
    fi
    local pins=scripts/requirements/peers.txt dest=third_party/pymodbus stamp
    stamp=$dest/.from-peers-$(sha256sum <"$pins" | cut -c1-16)
    if [[ -f $stamp ]]; then
        note "already in $dest"
        return
    fi
    has_pip || die 69 "python3 has no pip" "type: scripts/setup.sh --only system    (or: apt-get install python3-pip)"
    rm -rf "$dest"
    retry 3 python3 -m pip install -q --disable-pip-version-check --root-user-action=ignore --no-deps --no-compile \
        --only-binary=:all: --require-hashes --target "$dest" -r "$pins" ||
        die 69 "pip could not install what $pins pins" \
            "check the network and pip's settings (index, proxy), then type: scripts/setup.sh --only peers"
    touch "$stamp"
}

for step in "${STEPS[@]}"; do
    [[ -z $only || $only == "$step" ]] && "step_$step"
done
say "Set up."
