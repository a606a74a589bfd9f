//! A graph compiled for a GPU: every copy and launch of one run captured once into one CUDA graph, which
//! `run` replays. Nothing is allocated and no lock is held while it runs.

use std::hash::{DefaultHasher, Hasher};
use std::sync::Arc;

use bytemuck::{cast_slice, cast_slice_mut};
use cudarc::driver::{CudaFunction, CudaGraph, CudaStream, result, sys};
use half::f16;

use super::buffer::{DeviceBuffer, Pinned};
use super::device::{DeviceError, Gpu, Priority, call};
use super::feed::{Addresses, Feed};
use super::join::{self, Run};
use super::launch::{Launch, Limits};
use super::painter::Painter;
use super::queue::launch_packed;
use super::schedule::{Block, Loc, Port, Schedule, Step};
use super::storage::Storage;
use crate::engine::graph::{Graph, Value};
use crate::engine::passes;
use crate::engine::shape::{DType, Shape};
use crate::engine::tensor::{ParamStore, Tensor};
use crate::engine::{Options, ProgramError};

/// Owns its device memory and its stream. Fields drop in this order: first what uses the memory.
pub struct Program {
    feeds: Vec<Option<Feed>>,
    graph: Option<CudaGraph>,
    /// A run in which one input, by number, is there already.
    filled: Option<(usize, CudaGraph)>,
    /// Kernels of the graph stay loaded as long as these live.
    functions: Vec<CudaFunction>,
    stream: Arc<CudaStream>,
    copies: Arc<CudaStream>,
    schedule: Schedule,
    arena: DeviceBuffer,
    /// Parameters, which programs that change none of them may share.
    persistent: Arc<DeviceBuffer>,
    /// Of what `persistent` holds; `None` where a run changes it.
    contents: Option<u64>,
    inputs: Pinned<f32>,
    outputs: Pinned<f32>,
    gpu: Gpu,
}

// SAFETY: a graph's handle may be used from any thread, one at a time; the program owns it alone and
// all that use it take `&mut self` or `self`. Everything else in here is Send by itself.
unsafe impl Send for Program {}

impl std::fmt::Debug for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} launches on {:?}", self.schedule.launches(), self.gpu)
    }
}

impl Program {
    /// As `cpu::Program::compile`.
    pub fn compile(
        graph: &Graph,
        outputs: &[(&str, Value)],
        params: &ParamStore,
        gpu: &Gpu,
        priority: Priority,
        options: Options,
    ) -> Result<Self, ProgramError> {
        Self::compile_for(graph, outputs, params, gpu, gpu.limits(), priority, options)
    }

    /// As `compile`, on this one's GPU and with this one's parameters in memory, where both have the same ones
    /// and neither changes any.
    pub fn compile_beside(
        &self,
        graph: &Graph,
        outputs: &[(&str, Value)],
        params: &ParamStore,
        priority: Priority,
        options: Options,
    ) -> Result<Self, ProgramError> {
        let schedule = scheduled(graph, outputs, params, self.gpu.limits(), options)?;
        Self::of(schedule, &self.gpu, priority, changes_params(graph), Some(self))
    }

    /// With the tiles that a GPU of these limits would be given.
    pub(super) fn compile_for(
        graph: &Graph,
        outputs: &[(&str, Value)],
        params: &ParamStore,
        gpu: &Gpu,
        limits: Limits,
        priority: Priority,
        options: Options,
    ) -> Result<Self, ProgramError> {
        let schedule = scheduled(graph, outputs, params, limits, options)?;
        Self::of(schedule, gpu, priority, changes_params(graph), None)
    }

    /// `beside`: a program that may have the same parameters.
    pub(super) fn of(
        mut schedule: Schedule,
        gpu: &Gpu,
        priority: Priority,
        changes: bool,
        beside: Option<&Program>,
    ) -> Result<Self, ProgramError> {
        let block = std::mem::take(&mut schedule.persistent);
        let contents = (!changes).then(|| {
            let mut hasher = DefaultHasher::new();
            hasher.write(&block);
            hasher.finish()
        });
        let arena = DeviceBuffer::new(gpu, schedule.arena_bytes)?;
        let (stream, copies) = (gpu.stream(priority)?, gpu.stream(priority)?);
        let shared = beside.filter(|other| {
            contents.is_some() && other.contents == contents && other.persistent.bytes == block.len()
        });
        let persistent = match shared {
            Some(other) => Arc::clone(&other.persistent),
            None => {
                let persistent = DeviceBuffer::new(gpu, block.len())?;
                if !block.is_empty() {
                    // SAFETY: `persistent` has as many bytes, and `block` lives until the copy has ended.
                    unsafe { result::memcpy_htod_async(persistent.address, &block, stream.cu_stream()) }
                        .map_err(call("cuMemcpyHtoDAsync"))?;
                    stream.synchronize().map_err(call("cuStreamSynchronize"))?;
                }
                Arc::new(persistent)
            }
        };
        let inputs = Pinned::new(gpu, host_len(&schedule.inputs))?;
        let outputs = Pinned::new(gpu, host_len(&schedule.outputs))?;
        let mut program = Program {
            feeds: Vec::new(),
            graph: None,
            filled: None,
            functions: Vec::new(),
            stream,
            copies,
            schedule,
            arena,
            persistent,
            contents,
            inputs,
            outputs,
            gpu: gpu.clone(),
        };
        program.capture()?;
        Ok(program)
    }

    /// Captures one run.
    fn capture(&mut self) -> Result<(), DeviceError> {
        let mut functions = Vec::new();
        for run in &self.schedule.runs {
            let parts = self.parts(run);
            let Some((_, first)) = parts.first() else { continue };
            let function = self.gpu.function(first.module, first.kernel)?;
            if parts.iter().any(|(_, launch)| launch.shared > 0) {
                // Beyond 48 KiB, static and dynamic together, a kernel has to opt in. One kernel may
                // be launched with several sizes: it gets all that there is.
                let fixed = function.shared_size_bytes().map_err(call("cuFuncGetAttribute"))?;
                let most = i64::from(self.gpu.limits().shared_bytes) - i64::from(fixed);
                let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                function.set_attribute(attribute, most.max(0) as i32).map_err(call("cuFuncSetAttribute"))?;
            }
            functions.push(function);
        }
        self.functions = functions;
        self.graph = self.captured(|program| program.record(None, None))?;
        Ok(())
    }

    fn captured(
        &self,
        record: impl FnOnce(&Self) -> Result<(), DeviceError>,
    ) -> Result<Option<CudaGraph>, DeviceError> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.stream.begin_capture(mode).map_err(call("cuStreamBeginCapture"))?;
        let recorded = record(self);
        self.end_capture(recorded)
    }

    /// The capture has to be ended in any case, or the stream is of no use any more.
    fn end_capture(&self, recorded: Result<(), DeviceError>) -> Result<Option<CudaGraph>, DeviceError> {
        let graph = self.stream.end_capture(sys::CUgraphInstantiate_flags(0));
        recorded?;
        let graph = graph.map_err(call("cuGraphInstantiate"))?;
        if let Some(graph) = &graph {
            graph.upload().map_err(call("cuGraphUpload"))?;
        }
        Ok(graph)
    }

    /// Lets `planes` of host bytes (so many each) fill the fp16 input `name`: `launch` says how, given
    /// where planes and `tables` lie. Returns a number to call it by.
    pub fn attach(
        &mut self,
        name: &str,
        planes: &[usize],
        tables: &[&[u8]],
        launch: impl Fn(&Addresses) -> Launch,
    ) -> Result<usize, ProgramError> {
        let port = find(&self.schedule.inputs, "input", name)?;
        let input = self.schedule.inputs.iter().position(|p| p.name == name).unwrap_or(0);
        let out = self.address(port.value.loc);
        let feed = Feed::new(&self.gpu, &self.copies, input, out, planes, tables, launch, None)?;
        self.add(feed, false)
    }

    /// As `attach`, for one of the `pictures` that the input holds along its first axis. The feeds of all of them
    /// together fill the input: `run_with`.
    pub fn attach_picture(
        &mut self,
        name: &str,
        picture: usize,
        planes: &[usize],
        tables: &[&[u8]],
        launch: impl Fn(&Addresses) -> Launch,
    ) -> Result<usize, ProgramError> {
        let port = find(&self.schedule.inputs, "input", name)?;
        let pictures = port.shape.n();
        if picture >= pictures {
            return Err(ProgramError::Length { name: name.into(), needed: pictures, found: picture + 1 });
        }
        let bytes = port.shape.len() / pictures * port.value.storage.bytes();
        let input = self.schedule.inputs.iter().position(|p| p.name == name).unwrap_or(0);
        let out = self.address(port.value.loc) + (picture * bytes) as u64;
        let feed = Feed::new(&self.gpu, &self.copies, input, out, planes, tables, launch, None)?;
        if self.filled.as_ref().is_none_or(|(filled, _)| *filled != input) {
            let graph = self.captured(|program| program.record(None, Some(input)))?;
            self.filled = graph.map(|graph| (input, graph));
        }
        self.add(feed, true)
    }

    /// Lets the fp16 input `name` be what a painter has painted, (value − mean) / deviation. Returns a
    /// number to call it by; it takes no planes.
    pub fn attach_painter(
        &mut self,
        name: &str,
        painter: &Painter,
        mean: [f32; 3],
        deviation: [f32; 3],
    ) -> Result<usize, ProgramError> {
        let port = find(&self.schedule.inputs, "input", name)?;
        let (size, found) = (painter.size(), port.shape);
        if found != Shape::new(painter.batch(), size, size, 3) {
            let needed = painter.batch() * size * size * 3;
            return Err(ProgramError::Length { name: name.into(), needed, found: found.len() });
        }
        if port.value.storage != Storage::F16 {
            return Err(ProgramError::unknown("fp16 input", name, std::iter::empty()));
        }
        let input = self.schedule.inputs.iter().position(|p| p.name == name).unwrap_or(0);
        let out = self.address(port.value.loc);
        let (launch, kept) = painter.output(out, mean, deviation);
        let launch = |_: &Addresses| launch.clone();
        let feed = Feed::new(&self.gpu, &self.copies, input, out, &[], &[], launch, Some(kept))?;
        self.add(feed, false)
    }

    /// Captures for each of the feed's sides a run, or its launch alone.
    fn add(&mut self, mut feed: Feed, alone: bool) -> Result<usize, ProgramError> {
        for side in 0..feed.sides.len() {
            let graph = self.captured(|program| match alone {
                true => program.launch(&[(&Step::NOWHERE, &feed.sides[side].launch)], &feed.function),
                false => program.record(Some((&feed, side)), Some(feed.input)),
            })?;
            feed.sides[side].graph = graph;
        }
        let free = self.feeds.iter().position(Option::is_none);
        let number = free.unwrap_or(self.feeds.len());
        match self.feeds.get_mut(number) {
            Some(place) => *place = Some(feed),
            None => self.feeds.push(Some(feed)),
        }
        Ok(number)
    }

    /// Forgets a feed and its buffers.
    pub fn detach(&mut self, feed: usize) -> Result<(), ProgramError> {
        self.wait()?;
        if let Some(place) = self.feeds.get_mut(feed) {
            *place = None;
        }
        Ok(())
    }

    /// Runs once on a frame: copies its planes, fills the input, computes, copies the outputs.
    pub fn run_fed(&mut self, feed: usize, planes: &[&[u8]]) -> Result<(), ProgramError> {
        let known = self.feeds.len();
        let Some(Some(feed)) = self.feeds.get_mut(feed) else {
            let (name, known) = (feed.to_string(), format!("{known}"));
            return Err(ProgramError::Unknown { kind: "feed", name, known });
        };
        let submitted = feed.submit(planes, &self.stream);
        // Waited for even where it failed: the copies may be on their way, and the planes are borrowed.
        self.copies.synchronize().map_err(call("cuStreamSynchronize"))?;
        submitted?;
        self.wait()
    }

    /// Runs once on a picture for each feed of `attach_picture`: copies all their planes, fills the input, computes,
    /// copies the outputs. Each picture of the input needs its feed: one that has none is what memory holds.
    pub fn run_with(&mut self, pictures: &[(usize, [&[u8]; 3])]) -> Result<(), ProgramError> {
        let known = self.feeds.len();
        let mut submitted = Ok(());
        for (number, planes) in pictures {
            let Some(Some(feed)) = self.feeds.get_mut(*number) else {
                let (name, known) = (number.to_string(), known.to_string());
                submitted = Err(ProgramError::Unknown { kind: "feed", name, known });
                break;
            };
            if let Err(error) = feed.submit(planes, &self.stream) {
                submitted = Err(error.into());
                break;
            }
        }
        let computes = match &self.filled {
            Some((_, graph)) if submitted.is_ok() => graph.launch().map_err(call("cuGraphLaunch")),
            _ => Ok(()),
        };
        // Waited for even where it failed: the copies may be on their way, and the planes are borrowed.
        self.copies.synchronize().map_err(call("cuStreamSynchronize"))?;
        submitted?;
        computes?;
        self.wait()
    }

    /// The number by which the driver knows the stream that everything runs on.
    pub(super) fn stream_number(&self) -> u64 {
        self.stream.cu_stream() as usize as u64
    }

    fn wait(&self) -> Result<(), ProgramError> {
        self.stream.synchronize().map_err(call("cuStreamSynchronize"))?;
        Ok(())
    }

    /// Records one run; where an input, by number, is `filled`, by a feed's launch or before the run, without
    /// that input's copy and conversion.
    fn record(&self, fed: Option<(&Feed, usize)>, filled: Option<usize>) -> Result<(), DeviceError> {
        let stream = self.stream.cu_stream();
        if let Some((feed, side)) = fed {
            self.launch(&[(&Step::NOWHERE, &feed.sides[side].launch)], &feed.function)?;
        }
        for (index, port) in self.schedule.inputs.iter().enumerate() {
            if filled == Some(index) {
                continue;
            }
            let from = &self.inputs.as_slice()[port.offset..][..port.shape.len()];
            // SAFETY: the port's place holds as many words; `inputs` lives as long as the graph.
            unsafe { result::memcpy_htod_async(self.address(port.loc), from, stream) }
                .map_err(call("cuMemcpyHtoDAsync"))?;
        }
        let mut functions = self.functions.iter();
        for run in &self.schedule.runs {
            let mut parts = self.parts(run);
            if parts.is_empty() {
                continue;
            }
            let Some(function) = functions.next() else { continue };
            if let Some(input) = filled {
                parts.retain(|(step, _)| step.converts != Some(input));
            }
            if !parts.is_empty() {
                self.launch(&parts, function)?;
            }
        }
        for port in &self.schedule.outputs {
            let from = match port.loc.block {
                Block::Arena => self.arena.address,
                Block::Persistent => self.persistent.address,
            } + port.loc.offset as u64;
            let to = &self.outputs.as_slice()[port.offset..][..port.shape.len()];
            // SAFETY: as for the inputs; the device writes when the graph runs, which takes `&mut self`.
            unsafe {
                sys::cuMemcpyDtoHAsync_v2(to.as_ptr().cast_mut().cast(), from, size_of_val(to), stream)
            }
            .result()
            .map_err(call("cuMemcpyDtoHAsync"))?;
        }
        Ok(())
    }

    fn address(&self, loc: Loc) -> sys::CUdeviceptr {
        let block = match loc.block {
            Block::Arena => &self.arena,
            Block::Persistent => &self.persistent,
        };
        debug_assert!(loc.offset + loc.bytes <= block.bytes, "the plan lies inside the memory");
        block.address + loc.offset as u64
    }

    fn parts(&self, run: &Run) -> Vec<(&Step, &Launch)> {
        run.parts.iter().filter_map(|part| self.schedule.launch(*part)).collect()
    }

    /// Launches of one kernel as one.
    fn launch(&self, parts: &[(&Step, &Launch)], function: &CudaFunction) -> Result<(), DeviceError> {
        let Some((_, first)) = parts.first() else { return Ok(()) };
        let launches: Vec<&Launch> = parts.iter().map(|(_, launch)| *launch).collect();
        let bytes = |(step, launch): &(&Step, &Launch)| -> Vec<Vec<u8>> {
            let find = |place| step.place(place).map(|lying| (self.address(lying.loc), lying.storage));
            launch.args.iter().map(|arg| arg.bytes(find)).collect()
        };
        let args: Vec<Vec<Vec<u8>>> = parts.iter().map(bytes).collect();
        let mut packed = match join::joins(first.module, first.kernel) {
            true => vec![join::packed(&launches, &args)],
            false => args.into_iter().next().unwrap_or_default(),
        };
        let whole = Launch {
            grid: join::grid(&launches),
            shared: launches.iter().map(|l| l.shared).max().unwrap_or(0),
            args: Vec::new(),
            ..(*first).clone()
        };
        launch_packed(&self.stream, function, &whole, &mut packed)
    }

    /// Copies the inputs, runs every step once, and copies the outputs; returns when they are there.
    pub fn run(&mut self) -> Result<(), ProgramError> {
        if let Some(graph) = &self.graph {
            graph.launch().map_err(call("cuGraphLaunch"))?;
        }
        self.wait()
    }

    pub fn input_mut(&mut self, name: &str) -> Result<&mut [f32], ProgramError> {
        let port = find(&self.schedule.inputs, "input", name)?;
        let (offset, len) = (port.offset, port.shape.len());
        Ok(&mut self.inputs.as_mut_slice()[offset..][..len])
    }

    pub fn set_indices(&mut self, name: &str, values: &[u32]) -> Result<(), ProgramError> {
        let port = find(&self.schedule.inputs, "input", name)?;
        let (offset, needed) = (port.offset, port.shape.len());
        if needed != values.len() {
            return Err(ProgramError::Length { name: name.into(), needed, found: values.len() });
        }
        cast_slice_mut(&mut self.inputs.as_mut_slice()[offset..][..needed]).copy_from_slice(values);
        Ok(())
    }

    pub fn output(&self, name: &str) -> Result<&[f32], ProgramError> {
        let port = find(&self.schedule.outputs, "output", name)?;
        Ok(&self.outputs.as_slice()[port.offset..][..port.shape.len()])
    }

    pub fn output_indices(&self, name: &str) -> Result<&[u32], ProgramError> {
        Ok(cast_slice(self.output(name)?))
    }

    pub fn output_shape(&self, name: &str) -> Result<Shape, ProgramError> {
        Ok(find(&self.schedule.outputs, "output", name)?.shape)
    }

    /// Current values of all parameters, fetched from the device. Weights of products that nothing
    /// trains are kept there as fp16 and come back rounded so.
    pub fn export_params(&self) -> Result<ParamStore, ProgramError> {
        let mut store = ParamStore::new();
        for param in &self.schedule.params {
            let lying = param.lying;
            let len = param.shape.len();
            let mut words = vec![0u32; len.div_ceil(if lying.storage == Storage::F16 { 2 } else { 1 })];
            let bytes = &mut cast_slice_mut::<u32, u8>(&mut words)[..len * lying.storage.bytes()];
            let stream = self.stream.cu_stream();
            // SAFETY: as many bytes lie there; `bytes` lives until the copy has ended.
            unsafe { result::memcpy_dtoh_async(bytes, self.address(lying.loc), stream) }
                .map_err(call("cuMemcpyDtoHAsync"))?;
            self.stream.synchronize().map_err(call("cuStreamSynchronize"))?;
            let data = match (lying.storage, param.dtype) {
                (Storage::F16, _) => {
                    let halves: &[f16] = &cast_slice(&words)[..len];
                    halves.iter().map(|h| h.to_f32()).collect()
                }
                (_, DType::Index) => words.iter().map(|w| *w as f32).collect(),
                (_, DType::Real) => words.iter().map(|w| f32::from_bits(*w)).collect(),
            };
            store.insert(param.name.clone(), Tensor::new(param.shape, data));
        }
        Ok(store)
    }

    /// Fills intermediates and scratch with NaN.
    #[cfg(test)]
    pub(crate) fn poison(&mut self) -> Result<(), ProgramError> {
        // SAFETY: the whole arena, which the program owns.
        unsafe {
            result::memset_d8_async(self.arena.address, 0xff, self.arena.bytes, self.stream.cu_stream())
        }
        .map_err(call("cuMemsetD8Async"))?;
        Ok(())
    }

    /// Whether both have their parameters in the same memory.
    pub fn shares_params_with(&self, other: &Program) -> bool {
        Arc::ptr_eq(&self.persistent, &other.persistent)
    }

    /// Bytes of intermediates and scratch, and bytes of parameters, on the device.
    pub fn memory_bytes(&self) -> (usize, usize) {
        (self.arena.bytes, self.persistent.bytes)
    }

    pub(super) fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// Kernel launches of one run.
    pub fn launches(&self) -> usize {
        self.schedule.launches()
    }

    /// The plan as text: one line a launch, and for those that run with it one more each, indented.
    pub fn describe(&self) -> String {
        let mut text = String::new();
        for run in &self.schedule.runs {
            for (i, (step, l)) in self.parts(run).into_iter().enumerate() {
                text.push_str(&format!(
                    "{:<48} {:>24} grid {:>14} block {:>4} shared {:>6} at {:>10}, {:>9} bytes {:?}\n",
                    format!("{}{}", if i == 0 { "" } else { "  + " }, step.name),
                    format!("{}::{}", l.module, l.kernel),
                    format!("{}×{}×{}", l.grid[0], l.grid[1], l.grid[2]),
                    l.block.iter().product::<u32>(),
                    l.shared,
                    step.out.loc.offset,
                    step.out.loc.bytes,
                    step.out.storage,
                ));
            }
        }
        text
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Memory must not go while the device still works on it. After an error nothing runs any more.
        let _ = self.copies.synchronize();
        let _ = self.stream.synchronize();
    }
}

fn scheduled(
    graph: &Graph,
    outputs: &[(&str, Value)],
    params: &ParamStore,
    limits: Limits,
    options: Options,
) -> Result<Schedule, ProgramError> {
    let kept: Vec<Value> = outputs.iter().map(|o| o.1).collect();
    let mut graph = graph.clone();
    let made = match options.passes {
        true => passes::optimise(&mut graph, params, &kept),
        false => ParamStore::new(),
    };
    Schedule::new(&graph, outputs, [params, &made], limits)
}

fn changes_params(graph: &Graph) -> bool {
    graph.nodes().iter().any(|node| !node.op.writes().is_empty())
}

fn host_len(ports: &[Port]) -> usize {
    ports.iter().map(|p| p.offset + p.shape.len()).max().unwrap_or(0)
}

fn find<'a>(ports: &'a [Port], kind: &'static str, name: &str) -> Result<&'a Port, ProgramError> {
    ports
        .iter()
        .find(|p| p.name == name)
        .ok_or_else(|| ProgramError::unknown(kind, name, ports.iter().map(|p| p.name.as_str())))
}
