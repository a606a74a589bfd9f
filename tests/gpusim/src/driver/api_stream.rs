//! Streams, events, captures and graphs.

use std::ffi::{c_int, c_uint, c_void};

use super::api_memory::{named, resolve, wait};
use super::context::{Event, Exec, LEGACY, Mark, PER_THREAD, Stream};
use super::inject::Kind;
use super::run::{self, state};
use super::status::*;
use super::work::{Callback, Handle, Work};
use super::{driver, put};

const NON_BLOCKING: c_uint = 1;
const DISABLE_TIMING: c_uint = 2;

driver! {
    fn cuStreamCreate(stream: *mut Handle, flags: c_uint) { put(stream, create(flags, 0)?) }
    fn cuStreamCreateWithPriority(stream: *mut Handle, flags: c_uint, priority: c_int) {
        put(stream, create(flags, priority.clamp(-5, 0))?)
    }
    fn cuStreamDestroy_v2(stream: Handle) {
        if matches!(stream, 0 | LEGACY | PER_THREAD) { return Err(INVALID_HANDLE) }
        state().live()?.destroy_stream(stream)
    }
    fn cuStreamGetPriority(stream: Handle, priority: *mut c_int) {
        put(priority, named(stream, |context, stream| context.streams.get(&stream).map(|s| s.priority).ok_or(INVALID_HANDLE))?)
    }
    fn cuStreamGetFlags(stream: Handle, flags: *mut c_uint) {
        put(flags, named(stream, |context, stream| context.streams.get(&stream).map(|s| c_uint::from(!s.blocking)).ok_or(INVALID_HANDLE))?)
    }
    fn cuStreamGetCtx(_stream: Handle, context: *mut Handle) { put(context, state().live()?.handle) }
    fn cuStreamSynchronize(stream: Handle) { wait(stream) }
    fn cuStreamQuery(stream: Handle) {
        let targets = named(stream, |context, stream| {
            context.refuse_in_capture(stream)?;
            Ok(context.all_of(stream))
        })?;
        run::poll(&targets)
    }
    fn cuStreamWaitEvent(stream: Handle, event: Handle, _flags: c_uint) {
        named(stream, |context, stream| context.wait(stream, event))
    }
    fn cuStreamAttachMemAsync(_stream: Handle, _at: u64, _bytes: usize, _flags: c_uint) { Err(NOT_SUPPORTED) }
    fn cuLaunchHostFunc(stream: Handle, function: Option<unsafe extern "C" fn(*mut c_void)>, data: *mut c_void) {
        let function = function.ok_or(INVALID_VALUE)?;
        named(stream, |context, stream| context.submit(stream, Work::Callback(Callback { function, data })))
    }

    fn cuEventCreate(event: *mut Handle, flags: c_uint) {
        let mut s = state();
        let handle = s.handle();
        let timing = flags & DISABLE_TIMING == 0;
        s.live()?.events.insert(handle, Event { timing, mark: Mark::Never, records: 0, time: None });
        put(event, handle)
    }
    fn cuEventDestroy_v2(event: Handle) {
        state().live()?.events.remove(&event).map(|_| ()).ok_or(INVALID_HANDLE)
    }
    fn cuEventRecord(event: Handle, stream: Handle) {
        named(stream, |context, stream| context.record(event, stream))
    }
    fn cuEventRecordWithFlags(event: Handle, stream: Handle, _flags: c_uint) {
        named(stream, |context, stream| context.record(event, stream))
    }
    fn cuEventSynchronize(event: Handle) { run::wait_for(&marked(event)?) }
    fn cuEventQuery(event: Handle) { run::poll(&marked(event)?) }
    fn cuEventElapsedTime(milliseconds: *mut f32, from: Handle, to: Handle) { elapsed(milliseconds, from, to) }
    fn cuEventElapsedTime_v2(milliseconds: *mut f32, from: Handle, to: Handle) { elapsed(milliseconds, from, to) }

    fn cuStreamBeginCapture_v2(stream: Handle, mode: c_uint) {
        let mut s = state();
        let id = s.handle();
        let (context, stream) = resolve(&mut s, stream)?;
        context.begin_capture(stream, mode, id)
    }
    fn cuStreamEndCapture(stream: Handle, graph: *mut Handle) {
        put(graph, 0)?;
        let mut s = state();
        let handle = s.handle();
        let (context, stream) = resolve(&mut s, stream)?;
        let captured = context.end_capture(stream)?;
        context.graphs.insert(handle, captured);
        put(graph, handle)
    }
    fn cuStreamIsCapturing(stream: Handle, status: *mut c_uint) {
        put(status, named(stream, |context, stream| Ok(context.capture_status(stream).0))?)
    }
    fn cuStreamGetCaptureInfo_v2(
        stream: Handle, status: *mut c_uint, id: *mut u64, graph: *mut Handle, after: *mut *const Handle, n: *mut usize,
    ) {
        let (code, capture) = named(stream, |context, stream| Ok(context.capture_status(stream)))?;
        put(status, code)?;
        if !id.is_null() { put(id, capture.unwrap_or(0))? }
        if !graph.is_null() { put(graph, 0)? }
        if !after.is_null() { put(after, std::ptr::null())? }
        if n.is_null() { Ok(()) } else { put(n, 0) }
    }
    fn cuThreadExchangeStreamCaptureMode(mode: *mut c_uint) {
        state().live()?;
        put(mode, 1)
    }
    fn cuGraphInstantiateWithFlags(exec: *mut Handle, graph: Handle, flags: u64) {
        // Freeing at launch, upload and node priorities change nothing here; launches from the device cannot be.
        if flags & !0b1011 != 0 { return Err(INVALID_VALUE) }
        let mut s = state();
        let handle = s.handle();
        let context = s.live()?;
        let graph = context.graphs.get(&graph).ok_or(INVALID_HANDLE)?.clone();
        context.execs.insert(handle, Exec { graph, last: None });
        put(exec, handle)
    }
    fn cuGraphGetNodes(graph: Handle, nodes: *mut Handle, count: *mut usize) {
        let len = state().live()?.graphs.get(&graph).ok_or(INVALID_HANDLE)?.nodes.len();
        if !nodes.is_null() { return Err(NOT_SUPPORTED) }
        put(count, len)
    }
    fn cuGraphUpload(exec: Handle, stream: Handle) {
        named(stream, |context, stream| {
            context.execs.get(&exec).ok_or(INVALID_HANDLE)?;
            context.submit(stream, Work::Nothing)
        })
    }
    fn cuGraphLaunch(exec: Handle, stream: Handle) {
        let mut s = state();
        s.live()?;
        s.settings.fail.count(Kind::Launch)?;
        let (context, stream) = resolve(&mut s, stream)?;
        context.launch_graph(exec, stream)
    }
    /// Launches under way go on.
    fn cuGraphExecDestroy(exec: Handle) {
        state().live()?.execs.remove(&exec).map(|_| ()).ok_or(INVALID_HANDLE)
    }
    fn cuGraphDestroy(graph: Handle) {
        state().live()?.graphs.remove(&graph).map(|_| ()).ok_or(INVALID_HANDLE)
    }
}

fn create(flags: c_uint, priority: c_int) -> Answer<Handle> {
    if flags & !NON_BLOCKING != 0 {
        return Err(INVALID_VALUE);
    }
    let mut s = state();
    let handle = s.handle();
    s.live()?.streams.insert(handle, Stream::new(flags & NON_BLOCKING == 0, priority));
    Ok(handle)
}

/// What the event's completion needs. An event that was never recorded is complete.
fn marked(event: Handle) -> Answer<Vec<(Handle, u64)>> {
    let mut s = state();
    let context = s.live()?;
    context.refuse_captured_event(event)?;
    match context.events.get(&event).ok_or(INVALID_HANDLE)?.mark {
        Mark::At(stream, count) => Ok(vec![(stream, count)]),
        _ => Ok(Vec::new()),
    }
}

fn elapsed(milliseconds: *mut f32, from: Handle, to: Handle) -> Answer {
    let mut s = state();
    let context = s.live()?;
    let time = |handle: Handle| {
        let event = context.events.get(&handle).ok_or(INVALID_HANDLE)?;
        match event.time {
            _ if !event.timing || event.records == 0 => Err(INVALID_HANDLE),
            Some((nth, time)) if nth == event.records => Ok(time),
            _ => Err(NOT_READY),
        }
    };
    let (from, to) = (time(from)?, time(to)?);
    let seconds = match to >= from {
        true => (to - from).as_secs_f32(),
        false => -(from - to).as_secs_f32(),
    };
    put(milliseconds, seconds * 1e3)
}
