//! A fragment made a pipeline: `fragment ! videoconvert ! appsink`.
//!
//! Where the source can make one of our formats the converter passes buffers and ALLOCATION queries through
//! untouched; where it cannot, it converts into our slots. It takes raw video alone, which Bayer mosaics and
//! JPEG pictures are not: a fragment that can end in nothing else is linked to the sink by itself.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use gst::prelude::*;
use gstreamer as gst;
use gstreamer_app::{AppSink, AppSinkCallbacks};

use super::allocator::{CameraMemory, OfferedPools, offer_slots};
use super::config::{CameraConfig, DropPolicy};
use super::error::CaptureError;
use super::intake::{Intake, Run, callback};
use super::layout::{accepted_caps, unconverted_caps};
use super::packages;

const SINK: &str = "inspectd_sink";

/// A pipeline that stops when dropped.
pub(super) struct Pipeline {
    pipeline: gst::Pipeline,
    sink: AppSink,
    bus: gst::Bus,
    offered: OfferedPools,
}

/// What the bus says, as far as it matters here.
pub(super) enum Event {
    Eos,
    Error {
        message: String,
        negotiation: bool,
    },
    Warning(String),
    /// Nothing, within the time.
    Quiet,
}

impl Pipeline {
    /// Parses the fragment and appends the sink. Opens no device yet.
    pub(super) fn build(config: &CameraConfig) -> Result<Self, CaptureError> {
        init()?;
        let (name, fragment) = (config.name.as_str(), config.fragment.trim());
        let bad = |message: &str, hint: &str| CaptureError::Fragment {
            camera: name.to_owned(),
            fragment: fragment.to_owned(),
            message: message.to_owned(),
            hint: hint.to_owned(),
        };
        if fragment.is_empty() {
            return Err(bad("it is empty", "Try: source = \"videotestsrc is-live=true\""));
        }
        if fragment.ends_with('!') || fragment.starts_with('!') {
            let hint = "Leave the `!` at its ends out: what follows the source is added for you";
            return Err(bad("there is nothing on one side of a `!`", hint));
        }
        if fragment.contains('\0') {
            return Err(bad("it contains a NUL character", "Remove it"));
        }

        let mut context = gst::ParseContext::new();
        let mut parse = |description: &str| {
            gst::parse::launch_full(description, Some(&mut context), gst::ParseFlags::FATAL_ERRORS)
        };
        let parsed = parse(&format!("{fragment} ! videoconvert ! appsink name={SINK}")).or_else(|error| {
            let unlinked = error.kind::<gst::ParseError>() == Some(gst::ParseError::Link);
            let only = format!("capsfilter caps=\"{}\"", unconverted_caps());
            let direct = unlinked.then(|| parse(&format!("{fragment} ! {only} ! appsink name={SINK}")));
            direct.and_then(Result::ok).ok_or(error)
        });
        let element = parsed.map_err(|error| {
            // The context also lists elements that are there but were given a wrong property.
            let is_missing = error.kind::<gst::ParseError>() == Some(gst::ParseError::NoSuchElement);
            match context.missing_elements().into_iter().next().filter(|_| is_missing) {
                Some(element) => {
                    let hint = packages::hint_for(&element, &installed_elements());
                    CaptureError::MissingElement { camera: name.to_owned(), element, hint }
                }
                None => bad(error.message(), hint_for_parse_error(&error)),
            }
        })?;
        let not_found = || bad("its end could not be linked to ours", LINK_HINT);
        let pipeline = element.downcast::<gst::Pipeline>().map_err(|_| not_found())?;
        let sink = pipeline.by_name(SINK).and_then(|e| e.downcast::<AppSink>().ok()).ok_or_else(not_found)?;
        let bus = pipeline.bus().ok_or_else(not_found)?;
        configure_sink(&sink, config);
        Ok(Pipeline { pipeline, sink, bus, offered: OfferedPools::default() })
    }

    /// Sends frames to `intake` and offers `memory` upstream. Once, before `play`.
    pub(super) fn connect(&self, intake: Arc<Mutex<Intake>>, run: Arc<Run>, memory: Arc<CameraMemory>) {
        if let Some(pad) = self.sink.static_pad("sink") {
            offer_slots(&pad, memory, self.offered.clone());
        }
        self.sink.set_callbacks(AppSinkCallbacks::builder().new_sample(callback(intake, run)).build());
    }

    /// Starts. May block for seconds while a driver looks for its camera.
    pub(super) fn play(&self) -> Result<(), String> {
        match self.pipeline.set_state(gst::State::Playing) {
            Ok(_) => Ok(()),
            Err(_) => Err(match self.next_error() {
                Some(message) => message,
                None => "the source refused to start".to_owned(),
            }),
        }
    }

    fn next_error(&self) -> Option<String> {
        let message = self.bus.pop_filtered(&[gst::MessageType::Error])?;
        match message.view() {
            gst::MessageView::Error(error) => Some(describe(&message, &error.error(), error.debug())),
            _ => None,
        }
    }

    /// Waits for something to happen, at most `limit`.
    pub(super) fn next_event(&self, limit: Duration) -> Event {
        use gst::MessageType as T;
        let kinds = [T::Error, T::Eos, T::Warning, T::Latency, T::ClockLost];
        let limit = gst::ClockTime::try_from(limit).unwrap_or(gst::ClockTime::ZERO);
        let Some(message) = self.bus.timed_pop_filtered(limit, &kinds) else { return Event::Quiet };
        match message.view() {
            gst::MessageView::Eos(_) => Event::Eos,
            gst::MessageView::Error(error) => {
                let negotiation = error.debug().is_some_and(|debug| debug.contains("not-negotiated"));
                let mut text = describe(&message, &error.error(), error.debug());
                if negotiation {
                    text.push_str(". ");
                    text.push_str(LINK_HINT);
                }
                Event::Error { message: text, negotiation }
            }
            gst::MessageView::Warning(warning) => {
                Event::Warning(describe(&message, &warning.error(), warning.debug()))
            }
            gst::MessageView::Latency(_) => {
                let _ = self.pipeline.recalculate_latency();
                Event::Quiet
            }
            gst::MessageView::ClockLost(_) => {
                // GStreamer's documented answer: a new clock is chosen on the way back to PLAYING.
                let _ = self.pipeline.set_state(gst::State::Paused);
                let _ = self.pipeline.set_state(gst::State::Playing);
                Event::Quiet
            }
            _ => Event::Quiet,
        }
    }
}

impl Drop for Pipeline {
    /// Stops. A driver whose camera is gone may hold this up for seconds (9 s seen with GigE Vision).
    fn drop(&mut self) {
        self.offered.flush();
        let _ = self.pipeline.set_state(gst::State::Null);
        // The callback holds the intake; nothing must keep that alive after the pipeline.
        self.sink.set_callbacks(AppSinkCallbacks::builder().build());
        self.bus.set_flushing(true);
    }
}

fn configure_sink(sink: &AppSink, config: &CameraConfig) {
    sink.set_caps(Some(&accepted_caps()));
    // Our callback takes each frame at once, so the sink's own queue, whose drops are invisible, never
    // holds more than the one being handed over.
    sink.set_max_buffers(2);
    sink.set_drop(config.drop_policy != DropPolicy::Block);
    sink.set_sync(config.sync);
    // The sink's memory of its last sample would keep a slot for ever.
    sink.set_enable_last_sample(false);
    sink.set_qos(false);
}

const LINK_HINT: &str = "The source must end in raw video or JPEG pictures: others need a decoder (`! pngdec`, \
                         `! decodebin`), a Bayer camera that can do other formats too is told so \
                         (`! video/x-bayer,format=rggb`; of 8 bits, for others `! bayer2rgb`), and a sink must not \
                         be there";

fn hint_for_parse_error(error: &gst::glib::Error) -> &'static str {
    match error.kind::<gst::ParseError>() {
        Some(gst::ParseError::NoSuchProperty | gst::ParseError::CouldNotSetProperty) => {
            "See an element's properties with: gst-inspect-1.0 ELEMENT (sudo apt install gstreamer1.0-tools)"
        }
        Some(gst::ParseError::Link | gst::ParseError::DelayedLink) => LINK_HINT,
        _ => "Try it by itself with: gst-launch-1.0 SOURCE ! fakesink (sudo apt install gstreamer1.0-tools)",
    }
}

/// `element: what happened (detail)`, on one line.
fn describe(message: &gst::Message, error: &gst::glib::Error, debug: Option<gst::glib::GString>) -> String {
    let element = message.src().map(|source| source.name()).unwrap_or_default();
    // The debug text opens with file, line and function of GStreamer's source; its last line says more.
    let detail = debug.as_deref().and_then(|debug| debug.lines().nth(1)).map(str::trim).unwrap_or_default();
    let text = error.message().trim_end_matches('.');
    if detail.is_empty() { format!("{element}: {text}") } else { format!("{element}: {text} ({detail})") }
}

fn init() -> Result<(), CaptureError> {
    gst::init().map_err(|error| CaptureError::Init { message: error.message().to_owned() })
}

fn installed_elements() -> Vec<String> {
    let features = gst::Registry::get().features(gst::ElementFactory::static_type());
    features.iter().map(|feature| feature.name().to_string()).collect()
}

/// Whether a camera with this source could be built: syntax, elements and properties. Opens no device.
pub fn check_fragment(camera: &str, fragment: &str) -> Result<(), CaptureError> {
    Pipeline::build(&CameraConfig::new(camera, fragment)).map(drop)
}

/// GStreamer's version, as it names itself.
pub fn gstreamer_version() -> Result<String, CaptureError> {
    init()?;
    Ok(gst::version_string().to_string())
}

/// Elements for cameras and files that are not installed: element, Debian package, what it is for.
pub fn missing_plugins() -> Result<Vec<(&'static str, &'static str, &'static str)>, CaptureError> {
    init()?;
    Ok(packages::ELEMENTS
        .iter()
        .copied()
        .filter(|(name, ..)| gst::ElementFactory::find(name).is_none())
        .collect())
}
