#!/bin/sh
# Kills the real daemon N times (200) at seeded moments and looks each time whether every verdict that it had
# published is in the archive, the archive is whole, and the next start takes at most 5 s.
#
#   scripts/kill-campaign.sh [N [SEED]]
set -eu
cd "$(dirname "$0")/.."
KILLS=${1:-200} SEED=${2:-1} cargo test --test archive kill_9 -- --nocapture
