//! Whether a line makes progress and sees something, and if not, why.

use std::time::{Duration, Instant};

use super::camera::CameraCounts;
use crate::config::PictureTerms;
use crate::imaging::ImageHealth;

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

/// Why the camera's pictures are of no use, as a clause, or `None`.
pub fn bad_picture(camera: &CameraCounts, ended: bool, terms: &PictureTerms) -> Option<String> {
    let image = camera.image.filter(|_| !ended)?;
    let ImageHealth { brightness, contrast, sharpness, frozen_frames, .. } = image;
    if terms.frozen_after.is_some_and(|limit| frozen_frames >= limit) {
        return Some(format!("the picture is frozen: {frozen_frames} frames were like the one before"));
    }
    // A picture without contrast is dark or bright as well; the more special says more.
    if contrast < terms.contrast_min {
        let least = terms.contrast_min;
        return Some(format!(
            "the picture is empty: its contrast is {contrast:.1}, and {least} is the least (lens covered, light off?)"
        ));
    }
    if let Some(least) = terms.brightness_min.filter(|&least| brightness < least) {
        return Some(format!(
            "the picture is too dark: its brightness is {brightness:.1}, and {least} is the least"
        ));
    }
    if let Some(most) = terms.brightness_max.filter(|&most| brightness > most) {
        return Some(format!(
            "the picture is too bright: its brightness is {brightness:.1}, and {most} is the most"
        ));
    }
    let least = terms.sharpness_min.filter(|&least| sharpness < least)?;
    Some(format!(
        "the picture is blurred: its sharpness is {sharpness:.1}, and {least} is the least (lens dirty, focus lost?)"
    ))
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
    fn pictures_that_are_frozen_empty_dark_bright_or_blurred_make_a_line_sick_and_say_so() {
        let terms = PictureTerms {
            frozen_after: Some(100),
            contrast_min: 0.5,
            brightness_min: Some(20.0),
            brightness_max: Some(200.0),
            sharpness_min: Some(50.0),
        };
        let fine = ImageHealth {
            brightness: 90.0,
            contrast: 30.0,
            sharpness: 80.0,
            clipped: 0.0,
            frozen_frames: 99,
        };
        let why = |image: ImageHealth, terms: &PictureTerms| {
            let camera = CameraCounts { image: Some(image), ..CameraCounts::default() };
            assert_eq!(bad_picture(&camera, true, terms), None, "a line that has ended is not sick");
            bad_picture(&camera, false, terms)
        };
        assert_eq!(why(fine, &terms), None);
        for (image, word) in [
            (ImageHealth { frozen_frames: 100, ..fine }, "frozen: 100 frames"),
            (ImageHealth { contrast: 0.4, brightness: 0.0, ..fine }, "empty"),
            (ImageHealth { brightness: 19.0, ..fine }, "too dark"),
            (ImageHealth { brightness: 201.0, ..fine }, "too bright"),
            (ImageHealth { sharpness: 49.0, ..fine }, "blurred"),
        ] {
            let told = why(image, &terms).unwrap_or_default();
            assert!(told.contains(word), "{word}: {told}");
            let off = PictureTerms { frozen_after: None, contrast_min: 0.0, ..PictureTerms::default() };
            assert_eq!(why(image, &off), None, "{word}");
        }
        assert_eq!(bad_picture(&CameraCounts::default(), false, &terms), None, "before the first picture");
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
