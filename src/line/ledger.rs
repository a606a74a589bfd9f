//! The ledger of a line: what the camera counted beside what the desk counted. They are kept apart,
//! by different threads, so a frame that is lost or counted twice shows.

use super::camera::CameraCounts;
use super::desk::Counts;
use crate::telemetry::FrameCounts;

/// A frame was lost or counted twice.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Imbalance {
    #[error("{received} frames came to the desk, but {settled} have an end and {in_flight} are there")]
    Desk { received: u64, settled: u64, in_flight: u64 },
    #[error("the desk has {received} frames, but the camera captured {captured} and dropped {dropped}")]
    Beyond { received: u64, captured: u64, dropped: u64 },
    #[error("{missing} frames are between camera and desk, where {room} have room")]
    Between { missing: u64, room: u64 },
}

/// Checks a running line. `desk` must be read before `camera`: frames move from camera to desk, so the
/// camera can only have counted more meanwhile. `slots` is the number of frames that exist at most.
pub fn check(desk: &Counts, camera: &CameraCounts, slots: usize) -> Result<(), Imbalance> {
    let Counts { received, in_flight, .. } = *desk;
    if !desk.balances() {
        return Err(Imbalance::Desk { received, settled: desk.settled(), in_flight });
    }
    let (captured, dropped) = (camera.captured, camera.dropped_total());
    match captured.checked_sub(dropped + received) {
        None => Err(Imbalance::Beyond { received, captured, dropped }),
        Some(missing) if missing > 2 * slots as u64 => {
            Err(Imbalance::Between { missing, room: 2 * slots as u64 })
        }
        Some(_) => Ok(()),
    }
}

/// Checks a line that has stopped: nothing may be on its way any more.
pub fn check_final(desk: &Counts, camera: &CameraCounts) -> Result<(), Imbalance> {
    check(desk, camera, 0)?;
    let Counts { received, in_flight, .. } = *desk;
    if in_flight > 0 {
        return Err(Imbalance::Desk { received, settled: desk.settled(), in_flight });
    }
    Ok(())
}

/// What is exported. Balances by itself, because in flight is what the other columns leave over; whether
/// that is so many as it should be is what [`check`] says.
pub fn export(desk: &Counts, camera: CameraCounts, healthy: bool) -> FrameCounts {
    let mut dropped = camera.dropped;
    dropped.extend([
        ("queue_full", desk.queue_full),
        ("not_triggered", desk.not_triggered),
        ("shutdown", desk.shutdown),
    ]);
    let ends = desk.verdicts.iter().sum::<u64>() + dropped.iter().map(|(_, n)| n).sum::<u64>();
    FrameCounts {
        captured: camera.captured,
        zero_copy: camera.zero_copy,
        copied: camera.copied,
        damaged: camera.damaged,
        in_flight: camera.captured.saturating_sub(ends),
        verdicts: desk.verdicts,
        dropped,
        restarts: camera.restarts,
        missed: desk.missed,
        camera_up: camera.up,
        healthy,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn camera(captured: u64, dropped: u64) -> CameraCounts {
        CameraCounts { captured, dropped: vec![("no_slot", dropped)], ..CameraCounts::default() }
    }

    fn desk(received: u64, good: u64, in_flight: u64) -> Counts {
        Counts { received, verdicts: [good, 0, 0, 1, 0], queue_full: 1, in_flight, ..Counts::default() }
    }

    #[test]
    fn a_line_in_order_balances_while_frames_are_on_their_way() {
        assert_eq!(check(&desk(10, 6, 2), &camera(13, 1), 4), Ok(()));
        assert_eq!(check_final(&desk(10, 8, 0), &camera(11, 1)), Ok(()));
    }

    #[test]
    fn a_frame_that_is_lost_or_counted_twice_shows() {
        assert!(matches!(check(&desk(10, 5, 2), &camera(12, 0), 4), Err(Imbalance::Desk { .. })));
        assert!(matches!(check(&desk(10, 7, 2), &camera(12, 0), 4), Err(Imbalance::Desk { .. })));
        assert!(matches!(check(&desk(10, 6, 2), &camera(10, 1), 4), Err(Imbalance::Beyond { .. })));
        assert!(matches!(check(&desk(10, 6, 2), &camera(20, 0), 4), Err(Imbalance::Between { .. })));
        assert!(matches!(check_final(&desk(10, 8, 0), &camera(12, 1)), Err(Imbalance::Between { .. })));
        assert!(matches!(check_final(&desk(10, 7, 1), &camera(10, 0)), Err(Imbalance::Desk { .. })));
    }

    #[test]
    fn what_is_exported_adds_up() {
        let counts = export(&desk(10, 6, 2), camera(13, 1), true);
        let ends: u64 =
            counts.verdicts.iter().sum::<u64>() + counts.dropped.iter().map(|(_, n)| n).sum::<u64>();
        assert_eq!(counts.captured, ends + counts.in_flight);
        assert_eq!(counts.in_flight, 4, "two at the desk and two on their way");
    }
}
