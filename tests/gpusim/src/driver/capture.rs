//! Stream capture: work that becomes a graph instead of running.

use std::sync::Arc;
use std::thread;

use super::context::{Capture, Context, LEGACY, Mark};
use super::status::*;
use super::work::{Graph, Handle, Node, Work};

/// `CU_STREAM_CAPTURE_MODE_*`
const GLOBAL: u32 = 0;
const RELAXED: u32 = 2;

impl Context {
    pub fn begin_capture(&mut self, stream: Handle, mode: u32, id: Handle) -> Answer {
        if stream == LEGACY {
            return Err(CAPTURE_UNSUPPORTED);
        }
        if mode > RELAXED {
            return Err(INVALID_VALUE);
        }
        let state = self.streams.get_mut(&stream).ok_or(INVALID_HANDLE)?;
        if state.capture.is_some() {
            return Err(ILLEGAL_STATE);
        }
        state.capture = Some(id);
        let capture = Capture {
            origin: stream,
            mode,
            thread: thread::current().id(),
            nodes: Vec::new(),
            tips: [(stream, Vec::new())].into(),
            broken: false,
        };
        self.captures.insert(id, capture);
        Ok(())
    }

    /// The graph of everything since the begin, or why there is none. Either way the capture is over,
    /// unless the call came to the wrong stream or from the wrong thread.
    pub fn end_capture(&mut self, stream: Handle) -> Answer<Arc<Graph>> {
        let id = self.streams.get(&stream).ok_or(INVALID_HANDLE)?.capture.ok_or(ILLEGAL_STATE)?;
        let capture = self.captures.get_mut(&id).ok_or(ILLEGAL_STATE)?;
        if capture.origin != stream {
            capture.broken = true;
            return Err(CAPTURE_UNMATCHED);
        }
        if capture.mode != RELAXED && capture.thread != thread::current().id() {
            return Err(CAPTURE_WRONG_THREAD);
        }
        let capture = self.captures.remove(&id).ok_or(ILLEGAL_STATE)?;
        for state in self.streams.values_mut().filter(|s| s.capture == Some(id)) {
            state.capture = None;
        }
        if capture.broken {
            return Err(CAPTURE_INVALIDATED);
        }
        if !joined(&capture) {
            return Err(CAPTURE_UNJOINED);
        }
        Ok(Arc::new(Graph { nodes: capture.nodes }))
    }

    /// 0 none, 1 active, 2 invalidated.
    pub fn capture_status(&self, stream: Handle) -> (u32, Option<Handle>) {
        let id = self.streams.get(&stream).and_then(|s| s.capture);
        match id.map(|id| self.captures.get(&id)) {
            None => (0, None),
            Some(Some(capture)) if !capture.broken => (1, id),
            Some(_) => (2, id),
        }
    }

    pub fn capturing(&self, stream: Handle) -> Answer<bool> {
        match self.capture_status(stream).0 {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(CAPTURE_INVALIDATED),
        }
    }

    pub(super) fn record_node(&mut self, stream: Handle, work: Work) -> Answer<usize> {
        let id = self.streams.get(&stream).and_then(|s| s.capture).ok_or(INVALID_HANDLE)?;
        let capture = self.captures.get_mut(&id).ok_or(INVALID_HANDLE)?;
        let tips = capture.tips.entry(stream).or_default();
        let node = capture.nodes.len();
        capture.nodes.push(Node { work, after: std::mem::replace(tips, vec![node]) });
        Ok(node)
    }

    pub(super) fn record_graph(&mut self, stream: Handle, graph: &Graph) -> Answer {
        let first = self.record_node(stream, Work::Nothing)?;
        let id = self.streams.get(&stream).and_then(|s| s.capture).ok_or(INVALID_HANDLE)?;
        let capture = self.captures.get_mut(&id).ok_or(INVALID_HANDLE)?;
        for node in &graph.nodes {
            let after = match node.after.is_empty() {
                true => vec![first],
                false => node.after.iter().map(|i| first + 1 + i).collect(),
            };
            capture.nodes.push(Node { work: node.work.clone(), after });
        }
        let last = (first..capture.nodes.len()).collect();
        capture.tips.insert(stream, last);
        Ok(())
    }

    /// A stream waits for an event that was recorded in a capture: it becomes part of that capture.
    pub(super) fn join(&mut self, stream: Handle, id: Handle, tips: &[usize]) -> Answer {
        match self.capture_status(stream) {
            (2, _) => return Err(CAPTURE_INVALIDATED),
            (1, Some(own)) if own != id => {
                self.break_capture_of(stream, CAPTURE_MERGE);
                if let Some(other) = self.captures.get_mut(&id) {
                    other.broken = true;
                }
                return Err(CAPTURE_MERGE);
            }
            _ => {}
        }
        let Some(capture) = self.captures.get_mut(&id) else { return Err(CAPTURED_EVENT) };
        if capture.broken {
            return Err(CAPTURE_INVALIDATED);
        }
        if stream == LEGACY {
            capture.broken = true;
            return Err(CAPTURE_IMPLICIT);
        }
        let own = capture.tips.entry(stream).or_default();
        own.extend(tips);
        own.sort_unstable();
        own.dedup();
        self.streams.get_mut(&stream).ok_or(INVALID_HANDLE)?.capture = Some(id);
        Ok(())
    }

    /// A call that synchronises with a stream or asks how far it is breaks the stream's capture.
    pub fn refuse_in_capture(&mut self, stream: Handle) -> Answer {
        match self.capture_status(stream).0 {
            0 => Ok(()),
            1 => Err(self.break_capture_of(stream, CAPTURE_UNSUPPORTED)),
            _ => Err(CAPTURE_INVALIDATED),
        }
    }

    pub(super) fn break_capture_of(&mut self, stream: Handle, status: Status) -> Status {
        let id = self.streams.get(&stream).and_then(|s| s.capture);
        if let Some(capture) = id.and_then(|id| self.captures.get_mut(&id)) {
            capture.broken = true;
        }
        status
    }

    /// An event that was last recorded in a capture cannot be waited for by the host.
    pub fn refuse_captured_event(&mut self, event: Handle) -> Answer {
        let Some(event) = self.events.get(&event) else { return Err(INVALID_HANDLE) };
        let Mark::Captured(id, _) = event.mark else { return Ok(()) };
        if let Some(capture) = self.captures.get_mut(&id) {
            capture.broken = true;
        }
        Err(CAPTURED_EVENT)
    }

    /// Calls that may wait for other work (allocating, freeing, blocking copies) break a capture of
    /// their thread, or anybody's whose mode is global.
    pub fn refuse_unsafe_call(&mut self) -> Answer {
        let me = thread::current().id();
        let hit = |c: &&mut Capture| match c.mode {
            GLOBAL => true,
            RELAXED => false,
            _ => c.thread == me,
        };
        let mut hits = self.captures.values_mut().filter(hit).peekable();
        if hits.peek().is_none() {
            return Ok(());
        }
        hits.for_each(|capture| capture.broken = true);
        Err(CAPTURE_UNSUPPORTED)
    }

    /// Work for the legacy stream would have to wait for blocking streams under capture.
    pub(super) fn refuse_implicit_dependency(&mut self) -> Answer {
        let ids: Vec<Handle> =
            self.streams.values().filter(|s| s.blocking).filter_map(|s| s.capture).collect();
        for id in &ids {
            if let Some(capture) = self.captures.get_mut(id) {
                capture.broken = true;
            }
        }
        if ids.is_empty() { Ok(()) } else { Err(CAPTURE_IMPLICIT) }
    }
}

/// Whether the last work of the origin comes after all other work.
fn joined(capture: &Capture) -> bool {
    let mut reached = vec![false; capture.nodes.len()];
    let mut open: Vec<usize> = capture.tips.get(&capture.origin).cloned().unwrap_or_default();
    while let Some(i) = open.pop() {
        if !std::mem::replace(&mut reached[i], true) {
            open.extend(&capture.nodes[i].after);
        }
    }
    reached.into_iter().all(|r| r)
}
