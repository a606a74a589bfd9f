//! Whether a line makes progress, and if not, why.

use std::time::{Duration, Instant};

use super::camera::CameraCounts;

/// Why the line is sick, as a clause, or `None`. A line whose source has ended is not sick.
pub fn sickness(
    camera: &CameraCounts,
    ended: bool,
    stall_timeout: Option<Duration>,
    started: Instant,
    now: Instant,
) -> Option<String> {
    if ended {
        return None;
    }
    let fault = || camera.last_fault.as_ref().map_or(String::new(), |fault| format!("; last fault: {fault}"));
    match stall_timeout {
        Some(limit) => {
            let silent = now.saturating_duration_since(camera.last_frame_at.unwrap_or(started));
            (silent > limit).then(|| format!("no frame for {} s{}", silent.as_secs(), fault()))
        }
        // A triggered camera may be silent; only a fault that is not mended yet counts.
        None => (!camera.up && camera.restarts_total() > 0).then(|| format!("the camera is down{}", fault())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_silent_camera_is_sick_after_its_timeout_and_well_with_its_next_frame() {
        let start = Instant::now();
        let mut camera = CameraCounts::default();
        let at = |camera: &CameraCounts, s: u32| {
            sickness(camera, false, Some(SECOND * 5), start, start + SECOND * s)
        };
        assert_eq!(at(&camera, 5), None, "it may take so long to start");
        camera.last_fault = Some("it is unplugged".into());
        assert_eq!(at(&camera, 6).as_deref(), Some("no frame for 6 s; last fault: it is unplugged"));
        camera.last_frame_at = Some(start + SECOND * 7);
        assert_eq!(at(&camera, 8), None);
        assert!(at(&camera, 13).is_some());
        assert_eq!(sickness(&camera, true, Some(SECOND), start, start + SECOND * 99), None, "ended");
    }

    #[test]
    fn a_triggered_camera_may_be_silent_but_not_down() {
        let start = Instant::now();
        let camera = CameraCounts { restarts: vec![("error", 0)], ..CameraCounts::default() };
        let later = start + SECOND * 999;
        assert_eq!(sickness(&camera, false, None, start, later), None);
        let down = CameraCounts { restarts: vec![("error", 2)], ..camera };
        assert_eq!(sickness(&down, false, None, start, later).as_deref(), Some("the camera is down"));
        assert_eq!(sickness(&CameraCounts { up: true, ..down }, false, None, start, later), None);
    }
}
