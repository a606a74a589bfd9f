//! The way into the queue, buffer by buffer.

use super::*;
use crate::capture::SystemClock;
use crossbeam_channel::bounded;
use gstreamer_video as gst_video;

struct Bench {
    intake: Intake,
    run: Run,
    caps: gst::Caps,
}

/// An intake for I420 of 5×3 pixels.
fn bench() -> Bench {
    gst::init().unwrap();
    let stats = Arc::new(CaptureStats::default());
    let memory = Arc::new(CameraMemory::new(8, Arc::clone(&stats)));
    let clock = Arc::new(SystemClock);
    let intake = Intake::new("test".into(), DropPolicy::DropOldest, clock, stats, memory, bounded(2), 0);
    let caps = gst_video::VideoCapsBuilder::new().format(gst_video::VideoFormat::I420);
    let caps = caps.width(5).height(3).framerate(gst::Fraction::new(30, 1)).build();
    Bench { intake, run: Run::default(), caps }
}

impl Bench {
    fn accept(&mut self, buffer: gst::Buffer) -> Result<(), gst::FlowError> {
        let sample = gst::Sample::builder().buffer(&buffer).caps(&self.caps).build();
        self.intake.accept(&sample, &self.run)
    }

    fn dropped(&self, reason: DropReason) -> u64 {
        let ledger = self.intake.stats.ledger();
        assert!(ledger.balances());
        ledger.dropped(reason)
    }
}

fn add_meta(buffer: &mut gst::Buffer, (width, height): (u32, u32), offsets: &[usize], strides: &[i32]) {
    gst_video::VideoMeta::add_full(
        buffer.get_mut().unwrap(),
        gst_video::VideoFrameFlags::empty(),
        gst_video::VideoFormat::I420,
        width,
        height,
        offsets,
        strides,
    )
    .unwrap();
}

#[test]
fn planes_that_a_decoder_padded_are_found_by_their_meta_even_in_separate_memories() {
    // Y in 16-byte rows, chroma in 8-byte rows, a gap behind each plane; byte = its offset.
    let bytes: Vec<u8> = (0..128).collect();
    for cuts in [&[0, 128][..], &[0, 64, 96, 128]] {
        let mut bench = bench();
        let mut buffer = gst::Buffer::new();
        for cut in cuts.windows(2) {
            let memory = gst::Memory::from_slice(bytes[cut[0]..cut[1]].to_vec());
            buffer.get_mut().unwrap().append_memory(memory);
        }
        add_meta(&mut buffer, (5, 3), &[0, 64, 96], &[16, 8, 8]);
        bench.accept(buffer).unwrap();
        let frame = bench.intake.queue.try_recv().unwrap();
        let view = frame.view();
        let rows = |plane: usize, row_bytes: usize, rows: usize| -> Vec<u8> {
            let plane = view.planes[plane];
            (0..rows).flat_map(|y| &plane.data[y * plane.stride..][..row_bytes]).copied().collect()
        };
        assert_eq!(rows(0, 5, 3), [0, 1, 2, 3, 4, 16, 17, 18, 19, 20, 32, 33, 34, 35, 36]);
        assert_eq!(rows(1, 3, 2), [64, 65, 66, 72, 73, 74]);
        assert_eq!(rows(2, 3, 2), [96, 97, 98, 104, 105, 106]);
    }
}

#[test]
fn damaged_frames_are_handed_on_without_pixels_and_impossible_ones_dropped() {
    let mut bench = bench();
    let mut marked = gst::Buffer::from_mut_slice(vec![0u8; 128]);
    marked.get_mut().unwrap().set_flags(gst::BufferFlags::CORRUPTED);
    for (n, (buffer, damage)) in [
        (marked, Damage::Marked),
        (gst::Buffer::from_mut_slice(vec![0u8; 20]), Damage::Short),
        (gst::Buffer::new(), Damage::Short),
    ]
    .into_iter()
    .enumerate()
    {
        bench.accept(buffer).unwrap();
        let frame = bench.intake.queue.try_recv().unwrap();
        assert_eq!((frame.damage(), frame.sequence()), (Some(damage), n as u64));
        assert!(frame.view().check().is_err(), "nothing can take it for a picture");
        drop(frame);
        let ledger = bench.intake.stats.ledger();
        assert_eq!((ledger.damaged, ledger.delivered), (n as u64 + 1, n as u64 + 1));
        assert!(ledger.balances());
    }

    for (size, strides) in [((5, 3), [-16, 8, 8]), ((5, 3), [4, 8, 8]), ((4, 2), [16, 8, 8])] {
        let mut odd = gst::Buffer::from_mut_slice(vec![0u8; 128]);
        add_meta(&mut odd, size, &[0, 64, 96], &strides);
        bench.accept(odd).unwrap();
    }
    assert_eq!(bench.dropped(DropReason::Unsupported), 3);

    bench.caps = gst::Caps::builder("image/png").build();
    bench.accept(gst::Buffer::from_mut_slice(vec![0u8; 128])).unwrap();
    assert_eq!(bench.dropped(DropReason::Unsupported), 4);
    assert!(bench.intake.queue.is_empty());
}

#[test]
fn a_jpeg_of_a_new_size_is_followed_only_if_it_is_whole() {
    let mut bench = bench();
    bench.caps = gst::Caps::builder(JPEG).build();
    let jpeg = |side: usize| {
        let pixels = vec![90u8; side * side];
        let format = turbojpeg::PixelFormat::GRAY;
        let image = turbojpeg::Image { pixels: &pixels[..], width: side, pitch: side, height: side, format };
        turbojpeg::compress(image, 90, turbojpeg::Subsamp::Gray).unwrap().to_vec()
    };
    let mut sent = |bytes: Vec<u8>| {
        bench.accept(gst::Buffer::from_mut_slice(bytes)).unwrap();
        let frame = bench.intake.queue.try_recv().unwrap();
        (frame.damage(), frame.size(), bench.intake.stats.caps_changes())
    };
    let undecodable = (Some(Damage::Undecodable), (0, 0));
    let half = |jpeg: Vec<u8>| jpeg[..jpeg.len() / 2].to_vec();
    assert_eq!(sent(half(jpeg(64))), (undecodable.0, undecodable.1, 0), "before any size is known");
    assert_eq!(sent(jpeg(64)), (None, (64, 64), 0));
    assert_eq!(sent(half(jpeg(64))), (undecodable.0, undecodable.1, 0));
    assert_eq!(sent(half(jpeg(320))), (undecodable.0, undecodable.1, 0), "damaged, and not a new size");
    assert_eq!(sent(jpeg(64)), (None, (64, 64), 0));
    assert_eq!(sent(jpeg(320)), (None, (320, 320), 1));
    assert!(bench.intake.stats.ledger().balances());
}

#[test]
fn a_halted_intake_takes_nothing_more() {
    let mut bench = bench();
    bench.run.halt.store(true, Relaxed);
    let refused = bench.accept(gst::Buffer::from_mut_slice(vec![0u8; 128]));
    assert_eq!(refused, Err(gst::FlowError::Flushing));
    assert_eq!(bench.dropped(DropReason::Shutdown), 1);
}
