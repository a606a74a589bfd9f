//! The configuration as meant: units are types, paths are resolved, and what cannot work together
//! has been refused.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::diagnostic::Diagnostics;
use super::keys::{Key, Section};
use super::outlets::{self, ModbusConfig, MqttConfig, WebhookConfig};
use super::raw::{RawConfig, RawGroup, RawSection, Value};
use crate::engine::DeviceName;
use crate::imaging::Roi;

/// Every key of a section with what holds for it, in the table's order.
pub type Settings = Vec<(&'static Key, Option<Value>)>;

/// Slots that a line needs beside those that wait in its queue: four with the camera, one handed
/// over, one judged, one becoming a heatmap.
pub const SLOTS_BESIDE_QUEUE: usize = 7;

/// Name of a line: a metric label, part of file names, and what tells lines apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LineName(Arc<str>);

impl LineName {
    pub fn new(name: &str) -> Self {
        LineName(name.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for LineName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// SHA-256 of the settings that hold, defaults included; comments and order in the file do not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfigHash([u8; 32]);

/// The first 16 hexadecimal digits: enough to tell configurations apart in a log.
impl fmt::Display for ConfigHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..8].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Auto,
    Text,
    Json,
    Journald,
}

#[derive(Clone, Debug, PartialEq)]
pub struct DaemonConfig {
    /// `None`: nothing is served.
    pub http: Option<SocketAddr>,
    pub device: DeviceName,
    /// 0: one per core.
    pub threads: usize,
    /// Frames that a GPU judges at once; 1 to 4.
    pub batch: usize,
    pub drain: Duration,
    pub state_dir: Option<PathBuf>,
    /// `None`: changes are for clients on this machine.
    pub token_file: Option<PathBuf>,
    pub log_format: LogFormat,
    /// A level of `tracing`, lower case.
    pub log_level: String,
}

/// The archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchiveConfig {
    pub folder: PathBuf,
    pub images: HeatmapsOf,
    /// One in so many; 0: none.
    pub good_sample: u64,
    pub keep: Duration,
    /// Pictures and database together.
    pub keep_bytes: u64,
    /// How long a verdict waits until it is in there.
    pub wait: Duration,
    pub power_safe: bool,
}

/// Which frames are parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TriggerMode {
    Continuous,
    Software,
    Hardware,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TriggerConfig {
    pub mode: TriggerMode,
    /// From a software trigger to its frame.
    pub frame_within: Duration,
}

/// What gives way when a line's queue is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropPolicy {
    Oldest,
    Newest,
    /// The camera waits.
    Block,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnEos {
    Restart,
    Stop,
    Loop,
}

/// Overrides of the model's own thresholds.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub struct ThresholdOverride {
    pub unsure: Option<f32>,
    pub bad: Option<f32>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sink {
    Off,
    Stdout,
    File(PathBuf),
}

/// Which parts get a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeatmapsOf {
    Bad,
    UnsureAndBad,
    All,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputsConfig {
    pub verdicts: Sink,
    pub heatmaps: Option<PathBuf>,
    pub heatmaps_of: HeatmapsOf,
    pub heatmaps_keep: usize,
}

/// What a line's pictures must be like; see `imaging::statistics` for the measures.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PictureTerms {
    /// `None`: never.
    pub frozen_after: Option<u64>,
    pub contrast_min: f32,
    pub brightness_min: Option<f32>,
    pub brightness_max: Option<f32>,
    pub sharpness_min: Option<f32>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct LineConfig {
    pub name: LineName,
    pub model: PathBuf,
    /// GStreamer pipeline fragment.
    pub source: String,
    pub roi: Option<Roi>,
    pub slots: usize,
    pub queue: usize,
    pub drop: DropPolicy,
    /// `None`: waits for ever.
    pub deadline: Option<Duration>,
    pub on_eos: OnEos,
    /// Frames come at the pace of their timestamps.
    pub sync: bool,
    /// `None`: never.
    pub stall_timeout: Option<Duration>,
    pub trigger: TriggerConfig,
    pub thresholds: ThresholdOverride,
    pub outputs: OutputsConfig,
    pub modbus: Option<ModbusConfig>,
    pub webhook: Option<WebhookConfig>,
    pub camera_health: PictureTerms,
    pub settings: Settings,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub daemon: DaemonConfig,
    pub archive: Option<ArchiveConfig>,
    pub mqtt: Option<MqttConfig>,
    /// At least one.
    pub lines: Vec<LineConfig>,
    /// Of all tables but the lines', which have their own.
    pub settings: Settings,
}

impl Config {
    pub fn hash(&self) -> ConfigHash {
        let mut hash = Sha256::new();
        let lines = self.lines.iter().map(|line| &line.settings);
        for settings in std::iter::once(&self.settings).chain(lines) {
            for (key, value) in settings {
                let value = value.as_ref().map_or_else(String::new, Value::to_string);
                hash.update(format!("{}.{}={value}\n", key.section.header(), key.name));
            }
        }
        ConfigHash(hash.finalize().into())
    }
}

/// Reads the values by name. A value is absent where the file has a mistake that is already told.
pub(super) struct Reader<'a, 't> {
    pub section: &'a RawSection,
    pub base: &'a Path,
    pub out: &'a mut Diagnostics<'t>,
}

impl Reader<'_, '_> {
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        match self.section.get(name).0 {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    pub(super) fn integer(&self, name: &str) -> usize {
        match self.section.get(name).0 {
            Some(Value::Integer(n)) => usize::try_from(*n).unwrap_or(usize::MAX),
            _ => 0,
        }
    }

    pub(super) fn millis(&self, name: &str) -> Duration {
        Duration::from_millis(self.integer(name) as u64)
    }

    /// 0 means never.
    fn millis_or_never(&self, name: &str) -> Option<Duration> {
        Some(self.millis(name)).filter(|duration| !duration.is_zero())
    }

    fn float(&self, name: &str) -> Option<f32> {
        match self.section.get(name).0 {
            Some(Value::Float(x)) => Some(*x as f32),
            _ => None,
        }
    }

    pub(super) fn path(&self, name: &str) -> Option<PathBuf> {
        self.text(name).map(|text| resolve(self.base, text))
    }

    pub(super) fn refuse(&mut self, name: &str, message: String, help: &str) {
        let span = self.section.get(name).1;
        self.out.add(span, &self.section.path_of(name), message, Some(help.to_owned()));
    }
}

/// A path as written, from the folder of the configuration file, without `.` and doubled slashes.
pub(super) fn resolve(base: &Path, text: &str) -> PathBuf {
    base.join(text).components().filter(|c| *c != Component::CurDir).collect()
}

/// Gives the meaning of `raw`, with relative paths starting at `base`. Mistakes go to `out`; the
/// result is of use only if there are none.
pub fn mean(raw: RawConfig, base: &Path, text: &str, out: &mut Diagnostics<'_>) -> Config {
    if raw.lines.is_empty() {
        // Only if the file is otherwise sound: a broken header may hide a line.
        if out.is_empty() {
            let end = text.trim_end().len();
            out.add(
                end..end,
                "line",
                "there is no [[line]], so there is nothing to inspect".to_owned(),
                Some("[[line]] with name, model and source".to_owned()),
            );
        }
    }
    let daemon = daemon(raw.top.section(Section::Daemon), base, out);
    let archive = archive(&Reader { section: raw.top.section(Section::Archive), base, out });
    let mqtt = outlets::mqtt(&mut Reader { section: raw.top.section(Section::Mqtt), base, out });
    let mut lines: Vec<LineConfig> = Vec::new();
    let mut claimed: Vec<(PathBuf, String)> = Vec::new();
    for raw_line in raw.lines {
        let line = line(&raw_line, base, out);
        let mut refuse = |section: &RawSection, key: &str, message: String, help: String| {
            out.add(section.get(key).1, &section.path_of(key), message, Some(help));
        };
        if !line.name.as_str().is_empty() && lines.iter().any(|other| other.name == line.name) {
            let free = (2..)
                .map(|n| format!("{}-{n}", line.name))
                .find(|name| lines.iter().all(|other| other.name.as_str() != name));
            refuse(
                raw_line.section(Section::Line),
                "name",
                format!("two lines are called \"{}\"", line.name),
                format!("name = \"{}\"", free.unwrap_or_default()),
            );
        }
        if let Some(folder) = &line.outputs.heatmaps {
            match claimed.iter().find(|(path, _)| path == folder) {
                // Each line keeps its own number of pictures, so two in one folder would fight.
                Some((_, other)) => refuse(
                    raw_line.section(Section::Outputs),
                    "heatmaps",
                    format!("line \"{other}\" already keeps its heatmaps in {}", folder.display()),
                    format!("heatmaps = {:?}", folder.join(line.name.as_str())),
                ),
                None => claimed.push((folder.clone(), line.name.to_string())),
            }
        }
        lines.push(LineConfig { settings: raw_line.into_settings(), ..line });
    }
    Config { daemon, archive, mqtt, lines, settings: raw.top.into_settings() }
}

fn daemon(section: &RawSection, base: &Path, out: &mut Diagnostics<'_>) -> DaemonConfig {
    let read = Reader { section, base, out };
    DaemonConfig {
        http: read.text("http").and_then(|text| text.parse().ok()),
        device: read.text("device").and_then(|text| text.parse().ok()).unwrap_or_default(),
        threads: read.integer("threads"),
        batch: read.integer("batch").max(1),
        drain: read.millis("drain_ms"),
        state_dir: read.path("state_dir"),
        token_file: read.path("token_file"),
        log_format: match read.text("log_format") {
            Some("text") => LogFormat::Text,
            Some("json") => LogFormat::Json,
            Some("journald") => LogFormat::Journald,
            _ => LogFormat::Auto,
        },
        log_level: read.text("log_level").unwrap_or("info").to_owned(),
    }
}

fn archive(read: &Reader<'_, '_>) -> Option<ArchiveConfig> {
    let number = |name| read.integer(name) as u64;
    Some(ArchiveConfig {
        folder: read.path("folder")?,
        images: pictures_of(read.text("images")),
        good_sample: number("good_sample"),
        keep: Duration::from_secs(number("keep_days").saturating_mul(24 * 3600)),
        keep_bytes: number("keep_mb").saturating_mul(1_000_000),
        wait: read.millis("wait_ms"),
        power_safe: matches!(read.section.get("power_safe").0, Some(Value::Bool(true))),
    })
}

fn pictures_of(text: Option<&str>) -> HeatmapsOf {
    match text {
        Some("bad") => HeatmapsOf::Bad,
        Some("all") => HeatmapsOf::All,
        _ => HeatmapsOf::UnsureAndBad,
    }
}

fn line(raw: &RawGroup, base: &Path, out: &mut Diagnostics<'_>) -> LineConfig {
    let thresholds = thresholds(&mut Reader { section: raw.section(Section::Thresholds), base, out });
    let outputs = outputs(&Reader { section: raw.section(Section::Outputs), base, out });
    let modbus = outlets::modbus(&Reader { section: raw.section(Section::Modbus), base, out });
    let webhook = outlets::webhook(&Reader { section: raw.section(Section::Webhook), base, out });
    let camera_health = pictures(&mut Reader { section: raw.section(Section::CameraHealth), base, out });
    let trigger = trigger(&Reader { section: raw.section(Section::Trigger), base, out });
    let mut read = Reader { section: raw.section(Section::Line), base, out };
    let (slots, queue) = (read.integer("slots"), read.integer("queue"));
    if slots > 0 && queue + SLOTS_BESIDE_QUEUE > slots {
        read.refuse(
            "queue",
            format!(
                "a queue of {queue} does not fit {slots} slots: {SLOTS_BESIDE_QUEUE} are needed beside it"
            ),
            &format!("slots = {}", queue + SLOTS_BESIDE_QUEUE),
        );
    }
    let roi = match read.section.get("roi") {
        (Some(Value::Rect([x, y, width, height])), _) => {
            if *width == 0 || *height == 0 {
                let message =
                    format!("the region of interest is {width} x {height} pixels: it shows nothing");
                read.refuse("roi", message, "roi = [320, 40, 640, 640]");
            }
            let cut = |n: &u64| usize::try_from(*n).unwrap_or(usize::MAX);
            Some(Roi { x: cut(x), y: cut(y), width: cut(width), height: cut(height) })
        }
        _ => None,
    };
    LineConfig {
        name: LineName::new(read.text("name").unwrap_or("")),
        model: read.path("model").unwrap_or_default(),
        source: read.text("source").unwrap_or("").to_owned(),
        roi,
        slots,
        queue,
        drop: match read.text("drop") {
            Some("newest") => DropPolicy::Newest,
            Some("block") => DropPolicy::Block,
            _ => DropPolicy::Oldest,
        },
        deadline: read.millis_or_never("deadline_ms"),
        on_eos: match read.text("on_eos") {
            Some("stop") => OnEos::Stop,
            Some("loop") => OnEos::Loop,
            _ => OnEos::Restart,
        },
        sync: matches!(read.section.get("sync").0, Some(Value::Bool(true))),
        stall_timeout: read
            .millis_or_never("stall_timeout_ms")
            .filter(|_| trigger.mode != TriggerMode::Hardware),
        trigger,
        thresholds,
        outputs,
        modbus,
        webhook,
        camera_health,
        settings: Vec::new(),
    }
}

fn trigger(read: &Reader<'_, '_>) -> TriggerConfig {
    let mode = match read.text("mode") {
        Some("software") => TriggerMode::Software,
        Some("hardware") => TriggerMode::Hardware,
        _ => TriggerMode::Continuous,
    };
    TriggerConfig { mode, frame_within: read.millis("frame_within_ms") }
}

fn thresholds(read: &mut Reader<'_, '_>) -> ThresholdOverride {
    let found = ThresholdOverride { unsure: read.float("unsure"), bad: read.float("bad") };
    if let (Some(unsure), Some(bad)) = (found.unsure, found.bad)
        && unsure > bad
    {
        read.refuse(
            "unsure",
            format!("`unsure` ({unsure}) is above `bad` ({bad}), so no part could ever be unsure"),
            &format!("unsure = {bad} and bad = {unsure}"),
        );
    }
    found
}

fn pictures(read: &mut Reader<'_, '_>) -> PictureTerms {
    let terms = PictureTerms {
        frozen_after: Some(read.integer("frozen_after") as u64).filter(|&frames| frames > 0),
        contrast_min: read.float("contrast_min").unwrap_or(0.0),
        brightness_min: read.float("brightness_min"),
        brightness_max: read.float("brightness_max"),
        sharpness_min: read.float("sharpness_min"),
    };
    if let (Some(min), Some(max)) = (terms.brightness_min, terms.brightness_max)
        && min > max
    {
        read.refuse(
            "brightness_min",
            format!("`brightness_min` ({min}) is above `brightness_max` ({max}), so no picture would do"),
            &format!("brightness_min = {max} and brightness_max = {min}"),
        );
    }
    terms
}

fn outputs(read: &Reader<'_, '_>) -> OutputsConfig {
    OutputsConfig {
        verdicts: match read.text("verdicts") {
            Some("off") => Sink::Off,
            Some("-") | None => Sink::Stdout,
            Some(path) => Sink::File(resolve(read.base, path)),
        },
        heatmaps: read.path("heatmaps"),
        heatmaps_of: pictures_of(read.text("heatmaps_of")),
        heatmaps_keep: read.integer("heatmaps_keep"),
    }
}
