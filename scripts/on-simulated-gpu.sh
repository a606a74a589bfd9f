#!/usr/bin/env bash
# Runs a command with the simulated GPU (tests/gpusim) as its NVIDIA driver. No time taken under it says
# anything of silicon.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/lib.sh
. "$root/scripts/lib.sh"

case ${1-} in
    "" | -h | --help)
        cat <<'EOF'
usage: scripts/on-simulated-gpu.sh COMMAND [ARGUMENT...]
  e.g. scripts/on-simulated-gpu.sh target/release/inspectd forward --device cuda:0 ...

  GPUSIM_SEED=N              every random choice of order follows from it (1)
  GPUSIM_ORDER=forward|reverse|random
                             order of streams, blocks and warps (random)
  GPUSIM_CHECK=0             no memory and race checks
  GPUSIM_MEMORY=BYTES        device memory (4 GiB)
  GPUSIM_FAIL=KIND:N[+],...  the N-th call of a kind fails (N+: and all later ones); kinds are alloc,
                             host-alloc, copy, launch, module, context, copy-sticky, launch-sticky
  GPUSIM_COUNTERS=FILE       one line of JSON per kernel run
  GPUSIM_THREADS=N           host threads that run blocks (all cores)
EOF
        [[ $# -gt 0 ]] && exit 0
        exit 64
        ;;
esac

built=${CARGO_TARGET_DIR:-$root/target}
# The dev profile optimises this crate fully.
(cd "$root" && cargo build --quiet --package gpusim) || die 69 "the simulated GPU does not build"
driver=$built/gpusim
mkdir -p "$driver"
# A process that runs already keeps the file it has loaded.
cp "$built/debug/libgpusim.so" "$driver/.new.$$"
mv "$driver/.new.$$" "$driver/libcuda.so.1"
ln -sfn libcuda.so.1 "$driver/libcuda.so"

export LD_LIBRARY_PATH=$driver${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
exec "$@"
