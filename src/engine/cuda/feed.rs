//! Filling an input on the device: host bytes are copied as they are, and one launch makes the input of
//! them. Copies go through a stream of their own into one of two sets of buffers, so that a frame can be
//! copied while the one before is still computed; each set has its own CUDA graph, in which that launch
//! stands before the program's.

use std::sync::Arc;

use cudarc::driver::{CudaEvent, CudaFunction, CudaGraph, CudaStream, result};

use super::buffer::DeviceBuffer;
use super::device::{DeviceError, Gpu, call};
use super::launch::Launch;

/// Frames that may be on their way at once.
const SIDES: usize = 2;

/// Where on the device things lie that the launch names.
#[derive(Clone, Debug)]
pub struct Addresses {
    pub planes: Vec<u64>,
    pub tables: Vec<u64>,
    /// The input, fp16 N·H·W·C.
    pub out: u64,
}

pub(super) struct Side {
    pub graph: Option<CudaGraph>,
    pub launch: Launch,
    planes: Vec<DeviceBuffer>,
    /// The copy has ended.
    copied: CudaEvent,
    /// The graph that read the planes has ended.
    read: CudaEvent,
}

/// One way to fill one input. Fields drop in this order: graphs before what they use.
pub struct Feed {
    pub(super) sides: Vec<Side>,
    pub(super) function: CudaFunction,
    /// Index of the input that it fills.
    pub(super) input: usize,
    next: usize,
    copies: Arc<CudaStream>,
    _tables: Vec<DeviceBuffer>,
    /// Memory of others that the launch names.
    _kept: Option<Arc<dyn Send + Sync>>,
}

impl Feed {
    /// `planes`: bytes of each plane. `launch` is asked once for each set of buffers.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn new(
        gpu: &Gpu,
        copies: &Arc<CudaStream>,
        input: usize,
        out: u64,
        planes: &[usize],
        tables: &[&[u8]],
        launch: impl Fn(&Addresses) -> Launch,
        kept: Option<Arc<dyn Send + Sync>>,
    ) -> Result<Self, DeviceError> {
        let mut uploaded = Vec::with_capacity(tables.len());
        for table in tables {
            let buffer = DeviceBuffer::new(gpu, table.len())?;
            // SAFETY: as many bytes; the table outlives the copy, which is waited for below.
            unsafe { result::memcpy_htod_async(buffer.address, table, copies.cu_stream()) }
                .map_err(call("cuMemcpyHtoDAsync"))?;
            uploaded.push(buffer);
        }
        copies.synchronize().map_err(call("cuStreamSynchronize"))?;
        let mut sides = Vec::with_capacity(SIDES);
        for _ in 0..SIDES {
            let buffers =
                planes.iter().map(|bytes| DeviceBuffer::new(gpu, *bytes)).collect::<Result<Vec<_>, _>>()?;
            let addresses = Addresses {
                planes: buffers.iter().map(|b| b.address).collect(),
                tables: uploaded.iter().map(|b| b.address).collect(),
                out,
            };
            let event = || gpu.context().new_event(None).map_err(call("cuEventCreate"));
            let (copied, read) = (event()?, event()?);
            sides.push(Side { graph: None, launch: launch(&addresses), planes: buffers, copied, read });
        }
        let first = &sides[0].launch;
        let function = gpu.function(first.module, first.kernel)?;
        Ok(Feed {
            sides,
            function,
            input,
            next: 0,
            copies: Arc::clone(copies),
            _tables: uploaded,
            _kept: kept,
        })
    }

    /// Copies a frame and starts the program on it; returns before either has ended. The frame's bytes
    /// must stay as they are until the program was waited for.
    pub(super) fn submit(&mut self, planes: &[&[u8]], compute: &CudaStream) -> Result<(), DeviceError> {
        let side = &self.sides[self.next];
        self.next = (self.next + 1) % self.sides.len();
        // An event that was never recorded holds nobody up.
        self.copies.wait(&side.read).map_err(call("cuStreamWaitEvent"))?;
        for (plane, buffer) in planes.iter().zip(&side.planes) {
            let bytes = &plane[..plane.len().min(buffer.bytes)];
            // SAFETY: no more bytes than the buffer holds; the caller keeps them until the program was
            // waited for.
            unsafe { result::memcpy_htod_async(buffer.address, bytes, self.copies.cu_stream()) }
                .map_err(call("cuMemcpyHtoDAsync"))?;
        }
        side.copied.record(&self.copies).map_err(call("cuEventRecord"))?;
        compute.wait(&side.copied).map_err(call("cuStreamWaitEvent"))?;
        if let Some(graph) = &side.graph {
            graph.launch().map_err(call("cuGraphLaunch"))?;
        }
        side.read.record(compute).map_err(call("cuEventRecord"))
    }
}
