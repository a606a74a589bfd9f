//! Our slots offered to the elements upstream: a GStreamer allocator over a [`SlotPool`], and the
//! answer to the ALLOCATION query that offers it.
//!
//! GStreamer 1.22 has no callback for the query on an appsink, and the sink's own answer is "no
//! preference"; a probe on its pad answers first. Basesink answers queries on the push side only.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};

use gst::glib;
use gst::prelude::*;
use gstreamer as gst;
use gstreamer_video as gst_video;

use super::layout::Stream;
use super::slots::SlotPool;
use super::stats::CaptureStats;

/// Slots kept from upstream, so that a frame which must be copied always can be.
const RESERVED_FOR_COPIES: usize = 2;
/// Buffers upstream's pool is filled with at once; more come when needed.
const POOL_MIN: u32 = 2;
/// Alignment as a mask, as GStreamer wants it: 64 bytes. Slots are page-aligned, the heap need not be.
const ALIGN_MASK: usize = 63;
/// Room per slot beyond the frame: decoders pad rows and planes.
const PADDING_BYTES: usize = 4096;

mod imp {
    use std::sync::OnceLock;

    use gst::glib::translate::IntoGlibPtr;
    use gst::subclass::prelude::*;

    use super::*;

    #[derive(Default)]
    pub struct SlotAllocator {
        pub source: OnceLock<(Arc<SlotPool>, Arc<CaptureStats>)>,
    }

    impl SlotAllocator {
        fn memory_in_slot(&self, size: usize, params: &gst::AllocationParams) -> Option<gst::Memory> {
            let (pool, _) = self.source.get()?;
            let page_mask = pool.slot_bytes() & pool.slot_bytes().wrapping_neg();
            if params.align() >= page_mask {
                return None;
            }
            let total = size.checked_add(params.prefix())?.checked_add(params.padding())?;
            let mut memory = gst::Memory::from_mut_slice(pool.take(total)?);
            memory.get_mut()?.resize(params.prefix()..params.prefix() + size);
            Some(memory)
        }
    }

    impl ObjectImpl for SlotAllocator {}
    impl GstObjectImpl for SlotAllocator {}

    // SAFETY: `alloc` returns memory that it owns and hands over (`into_glib_ptr`). That memory belongs to
    // the bindings' wrapping allocator (or to the system one), which brings its own map, share and free,
    // so GStreamer never calls this class to free, and the inherited `free` is never reached with memory
    // of another kind.
    unsafe impl AllocatorImpl for SlotAllocator {
        unsafe fn alloc(&self, size: usize, params: &gst::AllocationParams) -> *mut gst::ffi::GstMemory {
            if let Some(memory) = self.memory_in_slot(size, params) {
                return memory.into_glib_ptr();
            }
            // NULL would end the stream with an internal error. From the heap it goes on, one copy dearer.
            if let Some((_, stats)) = self.source.get() {
                stats.heap_fallback.fetch_add(1, Relaxed);
            }
            let system = gst::Allocator::find(Some("SystemMemory"));
            match system.map(|system| system.alloc(size, Some(params))) {
                Some(Ok(memory)) => memory.into_glib_ptr(),
                _ => std::ptr::null_mut(),
            }
        }
    }

    #[glib::object_subclass]
    impl ObjectSubclass for SlotAllocator {
        const NAME: &'static str = "InspectdSlotAllocator";
        type Type = super::SlotAllocator;
        type ParentType = gst::Allocator;

        fn instance_init(object: &glib::subclass::InitializingObject<Self>) {
            let allocator = object.as_ptr().cast::<gst::ffi::GstAllocator>();
            // SAFETY: the type's parent is GstAllocator, so the instance starts with that struct, and
            // during instance_init nobody else has the pointer. The name is static, as the field needs.
            unsafe { (*allocator).mem_type = c"InspectdSlotMemory".as_ptr() };
        }
    }
}

glib::wrapper! {
    /// Hands out slots as GStreamer memory; from the heap, counted, when none is free.
    pub struct SlotAllocator(ObjectSubclass<imp::SlotAllocator>) @extends gst::Allocator, gst::Object;
}

impl SlotAllocator {
    fn new(pool: Arc<SlotPool>, stats: Arc<CaptureStats>) -> Self {
        use gst::subclass::prelude::ObjectSubclassIsExt;
        let allocator: Self = glib::Object::new();
        // A fresh object's cell is empty, so this cannot be refused.
        let _ = allocator.imp().source.set((pool, stats));
        allocator
    }
}

/// A camera's memory: the slot pool for the current frame size, and the allocator over it. Made when
/// the first caps are known. Replaced, not grown, when larger frames come; the old pool lives until
/// its last frame is dropped.
#[derive(Debug)]
pub(super) struct CameraMemory {
    slots: usize,
    stats: Arc<CaptureStats>,
    current: Mutex<Option<(Arc<SlotPool>, SlotAllocator)>>,
}

impl CameraMemory {
    pub(super) fn new(slots: usize, stats: Arc<CaptureStats>) -> Self {
        CameraMemory { slots, stats, current: Mutex::new(None) }
    }

    pub(super) fn pool(&self) -> Option<Arc<SlotPool>> {
        self.lock().as_ref().map(|(pool, _)| Arc::clone(pool))
    }

    /// The pool for frames of `bytes` bytes.
    pub(super) fn pool_for(&self, bytes: usize) -> std::io::Result<Arc<SlotPool>> {
        self.for_frames(bytes).map(|(pool, _)| pool)
    }

    fn for_frames(&self, bytes: usize) -> std::io::Result<(Arc<SlotPool>, SlotAllocator)> {
        let mut current = self.lock();
        if let Some((pool, allocator)) = current.as_ref().filter(|(pool, _)| pool.slot_bytes() >= bytes) {
            return Ok((Arc::clone(pool), allocator.clone()));
        }
        let pool = SlotPool::new(self.slots, bytes.saturating_add(PADDING_BYTES))?;
        if !pool.pages().is_locked() {
            tracing::warn!(
                bytes = pool.pages().region().1,
                "The memory for frames could not be locked into RAM, so a frame may wait for the disk when \
                 memory is short. Set LimitMEMLOCK=infinity in the unit, or run `ulimit -l unlimited`."
            );
        }
        let allocator = SlotAllocator::new(Arc::clone(&pool), Arc::clone(&self.stats));
        *current = Some((Arc::clone(&pool), allocator.clone()));
        Ok((pool, allocator))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<(Arc<SlotPool>, SlotAllocator)>> {
        // The cell is replaced as a whole, never in parts.
        self.current.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// How many buffers upstream's pool may have.
    pub(super) fn upstream_max(&self) -> usize {
        self.slots - RESERVED_FOR_COPIES.min(self.slots)
    }
}

/// The pools that one pipeline was offered. A streaming thread that waits in one of them for a buffer
/// would keep the pipeline from stopping, so they are flushed first.
#[derive(Clone, Debug, Default)]
pub(super) struct OfferedPools(Arc<Mutex<Vec<glib::WeakRef<gst::BufferPool>>>>);

impl OfferedPools {
    fn push(&self, pool: &gst::BufferPool) {
        let mut pools = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        pools.retain(|pool| pool.upgrade().is_some());
        pools.push(pool.downgrade());
    }

    pub(super) fn flush(&self) {
        let pools = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        for pool in pools.iter().filter_map(|pool| pool.upgrade()) {
            pool.set_flushing(true);
        }
    }
}

/// Answers ALLOCATION queries that arrive at `pad` with our allocator and a bounded pool over it.
pub(super) fn offer_slots(pad: &gst::Pad, memory: Arc<CameraMemory>, offered: OfferedPools) {
    let kinds = gst::PadProbeType::QUERY_DOWNSTREAM | gst::PadProbeType::PUSH;
    pad.add_probe(kinds, move |_pad, info| {
        let Some(query) = info.query_mut() else { return gst::PadProbeReturn::Ok };
        let gst::QueryViewMut::Allocation(query) = query.view_mut() else { return gst::PadProbeReturn::Ok };
        match answer(query, &memory, &offered) {
            Some(()) => gst::PadProbeReturn::Handled,
            None => gst::PadProbeReturn::Ok,
        }
    });
}

fn answer(query: &mut gst::query::Allocation, memory: &CameraMemory, offered: &OfferedPools) -> Option<()> {
    let (caps, _need_pool) = query.get_owned();
    let caps = caps?;
    let stream = Stream::of_caps(&caps)?;
    let size = u32::try_from(stream.bytes).ok()?;
    let (_, allocator) = match memory.for_frames(stream.bytes) {
        Ok(found) => found,
        Err(error) => {
            tracing::error!(%error, bytes = size, "There is no memory for the frames of this size.");
            return None;
        }
    };
    let params = || gst::AllocationParams::new(gst::MemoryFlags::empty(), ALIGN_MASK, 0, 0);
    query.add_allocation_param(Some(&allocator), params());

    let max = u32::try_from(memory.upstream_max()).ok()?;
    let pool: gst::BufferPool = match stream.is_raw_video() {
        true => gst_video::VideoBufferPool::new().upcast(),
        false => gst::BufferPool::new(),
    };
    let mut config = pool.config();
    config.set_params(Some(&caps), size, POOL_MIN.min(max), max);
    config.set_allocator(Some(&allocator), Some(&params()));
    if stream.is_raw_video() {
        config.add_option(gst_video::BUFFER_POOL_OPTION_VIDEO_META.as_str());
    }
    if pool.set_config(config).is_ok() {
        offered.push(&pool);
        query.add_allocation_pool(Some(&pool), size, POOL_MIN.min(max), max);
    }
    if stream.is_raw_video() {
        // Rows and planes may be padded as upstream likes: we read strides from the meta.
        query.add_allocation_meta::<gst_video::VideoMeta>(None);
    }
    Some(())
}
