#!/usr/bin/env bash
# Camera faults, again and again: an RTSP server that is killed and one that freezes, for outages of several
# lengths. Prints for each how long the camera took to give frames again (median and worst), and how another line's
# latency was meanwhile; fails where one took longer than 6 s, a ledger did not balance or the other line noticed.
#
#   scripts/camera-faults.sh                 20 times each, outages of 1, 5 and 60 s: about an hour
#   scripts/camera-faults.sh 3 1,5           3 times each, of 1 and 5 s: two minutes
set -euo pipefail
cd "$(dirname "$0")/.."
export INSPECTD_TEST_ROUNDS=${1:-20} INSPECTD_TEST_OUTAGES_S=${2:-1,5,60}
exec cargo test --test cameras -- --nocapture --exact \
    an_rtsp_camera_that_is_killed_or_frozen_comes_back_and_no_other_line_notices
