//! Whole cameras on GStreamer's own test sources and on files.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::*;
use crate::imaging::PixelFormat;

/// Far longer than anything here takes; only a failing test waits for it.
const PATIENCE: Duration = Duration::from_secs(20);

/// A file-like camera: nothing is dropped, the end is the end.
fn config(fragment: &str) -> CameraConfig {
    CameraConfig {
        on_eos: OnEos::Stop,
        drop_policy: DropPolicy::Block,
        ..CameraConfig::new("test", fragment)
    }
}

fn start(config: CameraConfig) -> Camera {
    Camera::start(config, Arc::new(SystemClock)).unwrap()
}

fn next(camera: &Camera) -> Frame {
    camera.frames().recv_timeout(PATIENCE).unwrap_or_else(|error| {
        panic!("no frame: {error}; {:?}, {:?}", camera.stats().last_fault(), camera.stats().ledger())
    })
}

fn until(camera: &Camera, what: &str, condition: impl Fn(&CaptureStats) -> bool) {
    let (stats, start) = (camera.stats(), Instant::now());
    while !condition(&stats) {
        assert!(start.elapsed() < PATIENCE, "never: {what}; {stats:?}");
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

/// Every frame until the camera ends.
fn drain(camera: &Camera) -> Vec<u64> {
    let sequences = std::iter::from_fn(|| match camera.frames().recv_timeout(PATIENCE) {
        Ok(frame) => Some(frame.sequence()),
        Err(crossbeam_channel::RecvTimeoutError::Disconnected) => None,
        Err(error) => panic!("neither frame nor end: {error}; {:?}", camera.stats()),
    });
    sequences.collect()
}

/// One picture's plane without its padding.
fn rows(frame: &Frame, plane: usize, row_bytes: usize, rows: usize) -> Vec<u8> {
    let plane = frame.view().planes[plane];
    (0..rows).flat_map(|y| &plane.data[y * plane.stride..y * plane.stride + row_bytes]).copied().collect()
}

fn write_png(path: &Path, width: u32, height: u32, seed: u8) -> Vec<u8> {
    let pixels: Vec<u8> = (0..width * height * 3).map(|i| (i as u8).wrapping_mul(31) ^ seed).collect();
    image::RgbImage::from_raw(width, height, pixels.clone()).unwrap().save(path).unwrap();
    pixels
}

#[test]
fn every_format_arrives_with_the_right_pixels_at_an_odd_size() {
    // Solid 0x20c040 in 8-bit BT.601 limited range (the default below 720 lines):
    // Y = 16 + 219 (0.299·32 + 0.587·192 + 0.114·64) / 255 = 127.3, U = 128 + 224 (64 − 129.6) / (1.772·255)
    // = 95.5, V = 128 + 224 (32 − 129.6) / (1.402·255) = 66.8. The source computes in 8-bit fixed point:
    // allow 2. RGB passes through exactly.
    let (rgb, yuv) = ([0x20, 0xc0, 0x40], [127u8, 95, 67]);
    let (width, height) = (321, 241);
    for format in PixelFormat::ALL {
        let name = format.name();
        let kind = if matches!(format, PixelFormat::Bayer(_)) { "bayer" } else { "raw" };
        let camera = start(config(&format!(
            "videotestsrc num-buffers=2 pattern=solid-color foreground-color=0xff20c040 \
             ! video/x-{kind},format={name},width={width},height={height}"
        )));
        for sequence in 0..2 {
            let frame = next(&camera);
            assert_eq!((frame.sequence(), frame.format(), frame.size()), (sequence, format, (width, height)));
            // Per plane: bytes per row, rows, and the bytes that repeat.
            let planes: Vec<(usize, usize, Vec<u8>)> = match format {
                PixelFormat::Gray8 => vec![(321, 241, vec![yuv[0]])],
                PixelFormat::Rgb => vec![(963, 241, rgb.to_vec())],
                PixelFormat::Bgr => vec![(963, 241, vec![rgb[2], rgb[1], rgb[0]])],
                PixelFormat::Bgrx => vec![(1284, 241, vec![rgb[2], rgb[1], rgb[0], 255])],
                PixelFormat::Nv12 => vec![(321, 241, vec![yuv[0]]), (322, 121, vec![yuv[1], yuv[2]])],
                PixelFormat::I420 => {
                    vec![(321, 241, vec![yuv[0]]), (161, 121, vec![yuv[1]]), (161, 121, vec![yuv[2]])]
                }
                // The last pair's second Y is outside the picture: only whole pairs are compared.
                PixelFormat::Yuy2 => vec![(640, 241, vec![yuv[0], yuv[1], yuv[0], yuv[2]])],
                PixelFormat::Bayer(_) => vec![],
            };
            if let PixelFormat::Bayer(mosaic) = format {
                let red = mosaic.red();
                let plane = frame.view().planes[0];
                for (x, y) in (0..width).flat_map(|x| (0..height).map(move |y| (x, y))) {
                    let colour = usize::from(x % 2 != red.0) + usize::from(y % 2 != red.1);
                    assert_eq!(plane.data[y * plane.stride + x], rgb[colour], "{name} at {x}, {y}");
                }
                assert_eq!(frame.view().rgb_at(width - 1, height - 1), rgb, "{name}");
            }
            for (plane, (row_bytes, count, expected)) in planes.into_iter().enumerate() {
                let bytes = rows(&frame, plane, row_bytes, count);
                let off = bytes.iter().zip(expected.iter().cycle()).map(|(a, b)| a.abs_diff(*b)).max();
                let limit = if matches!(format, PixelFormat::Rgb | PixelFormat::Bgr) { 0 } else { 2 };
                assert!(off <= Some(limit), "{name} plane {plane}: {off:?}, {:?}", &bytes[..4]);
            }
        }
        assert!(drain(&camera).is_empty());
        camera.stop(PATIENCE).unwrap();
    }
}

#[test]
fn a_source_that_takes_our_pool_writes_straight_into_slots_that_never_grow_in_number() {
    let camera = start(config("videotestsrc num-buffers=60 ! video/x-raw,format=NV12,width=320,height=240"));
    let first = next(&camera);
    let region = camera.pool().unwrap().pages().region();
    assert_eq!(camera.pool().unwrap().slots(), 8);
    assert!(first.pages().unwrap().contains(first.view().planes[0].data));
    assert!(Arc::ptr_eq(first.pages().unwrap(), camera.pool().unwrap().pages()));
    drop(first);
    assert_eq!(drain(&camera), (1..60).collect::<Vec<u64>>());
    let ledger = camera.stats().ledger();
    assert_eq!((ledger.captured, ledger.delivered, ledger.zero_copy, ledger.copied), (60, 60, 60, 0));
    assert_eq!(camera.stats().heap_fallback(), 0);
    let pool = camera.pool().unwrap();
    assert_eq!(pool.pages().region(), region);
    camera.stop(PATIENCE).unwrap();
    assert_eq!(pool.free_slots(), 8);
}

#[test]
fn a_bayer_source_writes_straight_into_slots_or_is_copied_once() {
    for (tail, counted) in [("", (20, 0)), (" ! identity drop-allocation=true", (0, 20))] {
        let camera = start(config(&format!(
            "videotestsrc num-buffers=20 ! video/x-bayer,format=gbrg,width=33,height=17{tail}"
        )));
        assert_eq!(drain(&camera).len(), 20);
        let ledger = camera.stats().ledger();
        assert_eq!((ledger.zero_copy, ledger.copied), counted, "{tail}");
        camera.stop(PATIENCE).unwrap();
    }
    // The first mosaic that the source has is taken where none is named.
    let camera = start(config("videotestsrc num-buffers=1 ! video/x-bayer"));
    assert!(matches!(next(&camera).format(), PixelFormat::Bayer(_)));
}

#[test]
fn a_source_with_memory_of_its_own_is_copied_once() {
    let camera = start(config(
        "videotestsrc num-buffers=20 ! video/x-raw,format=RGB,width=33,height=17 ! identity drop-allocation=true",
    ));
    let held = next(&camera);
    assert!(held.pages().unwrap().contains(held.view().planes[0].data));
    assert!(Arc::ptr_eq(held.pages().unwrap(), camera.pool().unwrap().pages()));
    drop(held);
    assert_eq!(drain(&camera).len(), 19);
    let ledger = camera.stats().ledger();
    assert_eq!((ledger.zero_copy, ledger.copied, ledger.delivered), (0, 20, 20));
    assert_eq!(camera.pool().unwrap().free_slots(), 8);
}

#[test]
fn raw_files_are_read_with_their_padding_and_short_ones_are_damaged() {
    let dir = tempfile::tempdir().unwrap();
    // GStreamer pads rows of GRAY8 to 4 bytes: 5×3 pixels are 3 rows of 8.
    let padded: Vec<u8> = (0..24).collect();
    std::fs::write(dir.path().join("f0.raw"), &padded[..15]).unwrap();
    std::fs::write(dir.path().join("f1.raw"), &padded).unwrap();
    let camera = start(config(&format!(
        "multifilesrc location={}/f%d.raw caps=\"video/x-raw,format=GRAY8,width=5,height=3,framerate=30/1\"",
        dir.path().display()
    )));
    assert_eq!(next(&camera).damage(), Some(Damage::Short));
    let frame = next(&camera);
    assert_eq!((frame.sequence(), frame.damage()), (1, None));
    assert_eq!(rows(&frame, 0, 5, 3), [0, 1, 2, 3, 4, 8, 9, 10, 11, 12, 16, 17, 18, 19, 20]);
    drop(frame);
    assert!(drain(&camera).is_empty());
    let ledger = camera.stats().ledger();
    assert_eq!((ledger.copied, ledger.zero_copy, ledger.damaged, ledger.delivered), (1, 0, 1, 2));
    assert!(ledger.balances());
}

#[test]
fn picture_files_play_in_a_loop_with_their_exact_pixels() {
    let dir = tempfile::tempdir().unwrap();
    let pictures: Vec<Vec<u8>> =
        (0..3).map(|i| write_png(&dir.path().join(format!("p{i}.png")), 7, 5, i * 40)).collect();
    let camera = start(config(&format!(
        "multifilesrc location={}/p%d.png start-index=0 stop-index=2 loop=true \
         caps=image/png,framerate=30/1 ! pngdec",
        dir.path().display()
    )));
    for i in 0..8 {
        let frame = next(&camera);
        assert_eq!((frame.format(), frame.size()), (PixelFormat::Rgb, (7, 5)));
        assert_eq!(rows(&frame, 0, 21, 5), pictures[i % 3], "picture {i}");
    }
    camera.stop(PATIENCE).unwrap();
}

#[test]
fn jpeg_pictures_are_decoded_and_one_that_was_cut_is_damaged_not_a_picture() {
    let dir = tempfile::tempdir().unwrap();
    for n in 0..4u8 {
        let path = dir.path().join(format!("p{n}.jpg"));
        image::RgbImage::from_pixel(48, 32, image::Rgb([n * 60, 100, 50])).save(&path).unwrap();
        if n == 2 {
            let whole = std::fs::read(&path).unwrap();
            std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        }
    }
    let camera = start(config(&format!(
        "multifilesrc location={}/p%d.jpg caps=image/jpeg,framerate=30/1",
        dir.path().display()
    )));
    for n in 0..4u8 {
        let frame = next(&camera);
        assert_eq!(frame.sequence(), u64::from(n));
        if n == 2 {
            assert_eq!((frame.damage(), frame.pages().is_some()), (Some(Damage::Undecodable), false));
        } else {
            assert_eq!((frame.damage(), frame.format(), frame.size()), (None, PixelFormat::Rgb, (48, 32)));
            assert!(rows(&frame, 0, 144, 32)[0].abs_diff(n * 60) <= 2);
        }
    }
    assert!(drain(&camera).is_empty());
    let ledger = camera.stats().ledger();
    assert_eq!((ledger.captured, ledger.copied, ledger.damaged), (4, 3, 1));
    assert_eq!(camera.pool().unwrap().free_slots(), 8);
    // A camera whose JPEG is asked for by caps.
    let camera = start(config("videotestsrc num-buffers=5 ! jpegenc ! image/jpeg,width=320"));
    assert_eq!(drain(&camera), [0, 1, 2, 3, 4]);
    assert_eq!(camera.stats().ledger().damaged, 0);
}

#[test]
fn formats_that_we_do_not_hand_on_are_converted() {
    let camera = start(config(
        "videotestsrc num-buffers=1 pattern=white ! video/x-raw,format=ARGB,width=16,height=16",
    ));
    let frame = next(&camera);
    assert!(PixelFormat::ALL.contains(&frame.format()));
    assert!(frame.view().planes[0].data[0] >= 235);
}

#[test]
fn at_the_end_a_camera_stops_begins_again_or_restarts_as_told() {
    let source = "videotestsrc num-buffers=3 ! video/x-raw,width=16,height=16";
    let camera = start(config(source));
    assert_eq!(drain(&camera), [0, 1, 2]);
    until(&camera, "finished", CaptureStats::is_finished);
    assert!(!camera.stats().is_up());

    let camera = start(CameraConfig { on_eos: OnEos::Loop, ..config(source) });
    let sequences: Vec<u64> = (0..10).map(|_| next(&camera).sequence()).collect();
    assert_eq!(sequences, (0..10).collect::<Vec<u64>>());
    assert!(camera.stats().loops() >= 3);
    assert_eq!(camera.stats().restarts_total(), 0);
    camera.stop(PATIENCE).unwrap();

    let clock = Arc::new(ManualClock::new());
    let config = CameraConfig { on_eos: OnEos::Restart, ..config(source) };
    let camera = Camera::start(config, clock.clone()).unwrap();
    for sequence in 0..3 {
        assert_eq!(next(&camera).sequence(), sequence);
    }
    until(&camera, "a restart", |stats| stats.restarts(RestartReason::Eos) == 1);
    assert!(!camera.stats().is_up());
    assert!(camera.frames().try_recv().is_err(), "it must wait for the clock");
    clock.advance(Duration::from_millis(200));
    assert_eq!(next(&camera).sequence(), 3);
    assert!(camera.stats().is_up());
    camera.stop(PATIENCE).unwrap();
}

#[test]
fn a_loop_without_a_single_frame_is_a_fault_and_does_not_spin() {
    let config = CameraConfig { on_eos: OnEos::Loop, ..config("videotestsrc num-buffers=0") };
    let camera = Camera::start(config, Arc::new(ManualClock::new())).unwrap();
    until(&camera, "a restart", |stats| stats.restarts(RestartReason::Eos) == 1);
    assert_eq!(camera.stats().loops(), 0);
    camera.stop(PATIENCE).unwrap();
}

#[test]
fn a_missing_file_is_tried_again_with_backoff_until_it_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("late.png");
    let clock = Arc::new(ManualClock::new());
    let fragment = format!("filesrc location={} ! pngdec", path.display());
    let camera = Camera::start(config(&fragment), clock.clone()).unwrap();
    for (restarts, pause_ms) in [(1, 200), (2, 400), (3, 800)] {
        until(&camera, "a restart", |stats| stats.restarts_total() == restarts);
        clock.advance(Duration::from_millis(pause_ms - 1));
        assert_eq!(camera.stats().restarts_total(), restarts);
        if restarts == 3 {
            write_png(&path, 8, 8, 0);
        }
        clock.advance(Duration::from_millis(1));
    }
    assert_eq!(next(&camera).size(), (8, 8));
    let fault = camera.stats().last_fault().unwrap();
    assert!(fault.contains("late.png"), "{fault}");
    camera.stop(PATIENCE).unwrap();
}

#[test]
fn silence_is_a_stall_by_the_cameras_clock() {
    let clock = Arc::new(ManualClock::new());
    let silent = "videotestsrc is-live=true ! video/x-raw,width=16,height=16 ! valve drop=true";
    let camera = Camera::start(CameraConfig::new("test", silent), clock.clone()).unwrap();
    // The pipeline must run before time passes: its stall timer starts with it.
    until(&camera, "a stall", |stats| {
        clock.advance(Duration::from_secs(1));
        stats.restarts(RestartReason::Stall) == 1
    });
    assert!(camera.stats().last_fault().unwrap().contains("no frame came for 5.0 s"));
    assert_eq!(camera.stats().restarts(RestartReason::Error), 0);
    camera.stop(PATIENCE).unwrap();
}

#[test]
fn a_source_that_waits_for_its_consumer_has_not_stalled() {
    for source in ["videotestsrc", "videotestsrc ! identity drop-allocation=true"] {
        let clock = Arc::new(ManualClock::new());
        let camera = Camera::start(config(source), clock.clone()).unwrap();
        until(&camera, "a full queue", |stats| stats.ledger().in_flight == 3);
        for _ in 0..20 {
            clock.advance(Duration::from_secs(10));
            std::thread::park_timeout(Duration::from_millis(2));
        }
        let sequences: Vec<u64> = (0..10).map(|_| next(&camera).sequence()).collect();
        assert_eq!(sequences, (0..10).collect::<Vec<u64>>());
        assert_eq!(camera.stats().restarts_total(), 0, "{source}");
        camera.stop(PATIENCE).unwrap();
    }
}

#[test]
fn errors_of_an_element_restart_the_camera_and_the_sequence_goes_on() {
    let clock = Arc::new(ManualClock::new());
    let source = "videotestsrc ! video/x-raw,width=16,height=16 ! identity error-after=3";
    let camera = Camera::start(config(source), clock.clone()).unwrap();
    let before = (0..2).map(|_| next(&camera).sequence()).max();
    until(&camera, "a restart", |stats| stats.restarts(RestartReason::Error) == 1);
    clock.advance(Duration::from_millis(200));
    assert!(Some(next(&camera).sequence()) > before);
    camera.stop(PATIENCE).unwrap();
}

#[test]
fn a_slow_consumer_gets_the_newest_frames_or_the_oldest_by_policy_and_the_ledger_balances() {
    let source = "videotestsrc num-buffers=50 ! video/x-raw,format=GRAY8,width=16,height=16";
    for copied in ["", " ! identity drop-allocation=true"] {
        for (drop_policy, expected) in [(DropPolicy::DropOldest, [48, 49]), (DropPolicy::DropNewest, [0, 1])]
        {
            let camera = start(CameraConfig { drop_policy, ..config(&format!("{source}{copied}")) });
            until(&camera, "the end", CaptureStats::is_finished);
            let waiting = camera.stats().ledger();
            assert!(waiting.balances());
            assert_eq!((waiting.captured, waiting.in_flight), (50, 2));
            assert_eq!(waiting.dropped(DropReason::QueueFull), 48);
            assert_eq!(drain(&camera), expected, "{drop_policy:?}{copied}");
            let done = camera.stats().ledger();
            assert!(done.balances());
            assert_eq!((done.delivered, done.in_flight), (2, 0));
            assert_eq!(camera.pool().unwrap().free_slots(), 8, "{drop_policy:?}{copied}");
        }
    }
}

#[test]
fn a_consumer_that_holds_every_slot_costs_frames_and_gets_new_ones_after_letting_go() {
    let source = "videotestsrc is-live=true ! video/x-raw,width=16,height=16,framerate=200/1 \
                  ! identity drop-allocation=true";
    for drop_policy in [DropPolicy::DropNewest, DropPolicy::DropOldest] {
        let camera = start(CameraConfig { drop_policy, slots: 6, queue: 2, ..config(source) });
        let held: Vec<Frame> = (0..6).map(|_| next(&camera)).collect();
        // Some may have been lost before the last one was taken.
        let before = camera.stats().ledger().dropped(DropReason::NoSlot);
        until(&camera, "no slot", |stats| stats.ledger().dropped(DropReason::NoSlot) > before);
        assert_eq!(camera.pool().unwrap().free_slots(), 0);
        let last = held.last().unwrap().sequence();
        drop(held);
        assert!(next(&camera).sequence() > last + 1);
        assert!(camera.stats().ledger().balances());
        camera.stop(PATIENCE).unwrap();
    }
}

#[test]
fn a_camera_stops_even_while_its_source_waits_for_a_buffer() {
    // videoflip, a transform, asks the pool on the streaming thread that stopping has to wait for.
    for source in ["videotestsrc", "videotestsrc ! videoflip method=clockwise"] {
        for drop_policy in [DropPolicy::Block, DropPolicy::DropOldest] {
            let camera = start(CameraConfig { drop_policy, slots: 6, queue: 2, ..config(source) });
            let held: Vec<Frame> = (0..4).map(|_| next(&camera)).collect();
            camera.stop(PATIENCE).unwrap();
            assert_eq!(held.len(), 4);
            assert!(held.iter().all(|frame| !frame.view().planes[0].data.is_empty()));
        }
    }
}

#[test]
fn a_change_of_size_is_followed_and_larger_frames_get_a_new_pool() {
    let part = |width, height| {
        format!("videotestsrc num-buffers=3 ! video/x-raw,format=RGB,width={width},height={height} ! c. ")
    };
    let camera = start(config(&format!("concat name=c {}{}c.", part(16, 16), part(640, 480))));
    let small = next(&camera);
    let sizes: Vec<_> = (0..5).map(|_| next(&camera).size()).collect();
    assert_eq!(sizes, [(16, 16), (16, 16), (640, 480), (640, 480), (640, 480)]);
    assert_eq!(camera.stats().caps_changes(), 1);
    assert_eq!(camera.pool().unwrap().slots(), 8);
    assert!(camera.pool().unwrap().slot_bytes() >= 640 * 480 * 3);
    // Its pool was replaced, its pixels are still there.
    assert!(!camera.pool().unwrap().contains(small.view().planes[0].data));
    assert_eq!(rows(&small, 0, 48, 16).len(), 48 * 16);
}

#[test]
fn a_change_of_size_that_the_source_forbids_is_a_fault_of_its_own_kind() {
    let part =
        |width| format!("videotestsrc num-buffers=3 ! video/x-raw,format=RGB,width={width},height=16 ! c. ");
    let fixed = format!("concat name=c {}{}c. ! identity ! video/x-raw,width=16", part(16), part(32));
    let clock = Arc::new(ManualClock::new());
    let camera =
        Camera::start(CameraConfig { on_eos: OnEos::Restart, ..config(&fixed) }, clock.clone()).unwrap();
    for sequence in 0..3 {
        assert_eq!(next(&camera).sequence(), sequence);
    }
    until(&camera, "a restart", |stats| stats.restarts(RestartReason::Caps) == 1);
    assert!(!camera.stats().is_up(), "down at once");
    clock.advance(Duration::from_millis(200));
    assert_eq!(next(&camera).sequence(), 3);
    camera.stop(PATIENCE).unwrap();
}

#[test]
fn dropping_a_camera_ends_it() {
    let camera = start(config("videotestsrc"));
    let frames = camera.frames().clone();
    let stats = camera.stats();
    drop(camera);
    while frames.recv_timeout(PATIENCE).is_ok() {}
    let ledger = stats.ledger();
    assert!(ledger.balances());
    assert_eq!(ledger.in_flight, 0);
}

#[test]
fn bad_sources_are_refused_with_what_to_type() {
    for (fragment, expected) in [
        ("", "it is empty"),
        ("videotestsrc !", "Leave the `!`"),
        ("videotestsrc is-lve=true", "gst-inspect-1.0"),
        ("videotestsr", "Did you mean `videotestsrc`?"),
        ("nosuchsource device=1", "gst-inspect-1.0"),
        ("videotestsrc ! fakesink", "must end in raw video or JPEG"),
        ("videotestsrc ! video/x-bayer,format=rggb10le", "bayer2rgb"),
        ("videotestsrc ! pngenc", "pngdec"),
        ("videotestsrc (", "gst-launch-1.0"),
        ("a\0b", "NUL"),
    ] {
        let error = match Camera::start(config(fragment), Arc::new(SystemClock)) {
            Ok(_) => panic!("`{fragment}` was taken"),
            Err(error) => error.to_string(),
        };
        assert!(error.contains(expected) && error.contains("camera `test`"), "`{fragment}`: {error}");
        assert!(check_fragment("test", fragment).unwrap_err().to_string().contains(expected));
    }
    check_fragment("test", "videotestsrc is-live=true ! video/x-raw,format=GRAY8").unwrap();
    check_fragment("test", "videotestsrc ! video/x-bayer,format=rggb").unwrap();
    check_fragment("test", "v4l2src ! image/jpeg,width=640,height=480").unwrap();
}

#[test]
fn bad_sizes_are_refused_with_the_field_and_a_number_that_works() {
    let refused =
        |config: CameraConfig| Camera::start(config, Arc::new(SystemClock)).unwrap_err().to_string();
    let error = refused(CameraConfig { slots: 5, queue: 2, ..config("videotestsrc") });
    assert!(error.contains("slots is 5") && error.contains("use slots = 8"), "{error}");
    assert!(refused(CameraConfig { queue: 0, ..config("videotestsrc") }).contains("queue is 0"));
    assert!(refused(CameraConfig { slots: 1 << 20, ..config("videotestsrc") }).contains("4096"));
    let stall = CameraConfig { stall_timeout: Some(Duration::ZERO), ..config("videotestsrc") };
    assert!(refused(stall).contains("stall_timeout"));
}
