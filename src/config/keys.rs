//! The one table of configuration keys. The parser, the defaults, the reload plan, the documented
//! example `config/inspectd.toml` and the help in error messages are all read from it.

use std::fmt;

/// The tables a configuration is made of. Every table but `[[line]]` may be left out: its keys then have
/// their defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Section {
    Daemon,
    Archive,
    Mqtt,
    Line,
    Trigger,
    Thresholds,
    Outputs,
    Modbus,
    Webhook,
    CameraHealth,
}

impl Section {
    /// Tables of their own, in the order of the example.
    pub const TOP: &[Section] = &[Section::Daemon, Section::Archive, Section::Mqtt];
    /// Tables inside each `[[line]]`.
    pub const IN_LINE: &[Section] = &[
        Section::Trigger,
        Section::Thresholds,
        Section::Outputs,
        Section::Modbus,
        Section::Webhook,
        Section::CameraHealth,
    ];

    /// Every table, in the order of the example.
    pub fn all() -> impl Iterator<Item = Section> {
        Self::TOP.iter().chain(&[Section::Line]).chain(Self::IN_LINE).copied()
    }

    /// The table's own name, without the line's.
    pub fn name(self) -> &'static str {
        match self {
            Section::Daemon => "daemon",
            Section::Archive => "archive",
            Section::Mqtt => "mqtt",
            Section::Line => "line",
            Section::Trigger => "trigger",
            Section::Thresholds => "thresholds",
            Section::Outputs => "outputs",
            Section::Modbus => "modbus",
            Section::Webhook => "webhook",
            Section::CameraHealth => "camera_health",
        }
    }

    /// As written in the file.
    pub fn header(self) -> String {
        match self {
            Section::Line => "[[line]]".to_owned(),
            inner if Self::IN_LINE.contains(&inner) => format!("[line.{}]", inner.name()),
            top => format!("[{}]", top.name()),
        }
    }

    /// What the table is for.
    pub(super) fn about(self) -> &'static str {
        match self {
            Section::Daemon => "The daemon itself.",
            Section::Archive => {
                "A record of every verdict, with pictures of the parts that matter. See docs/archive.md."
            }
            Section::Mqtt => {
                "The verdicts and the state of every line to an MQTT broker. See docs/outputs.md."
            }
            Section::Line => {
                "One production line: a camera, a model and what its verdicts drive. Repeat this table, and \
                 those that follow, for each."
            }
            Section::Trigger => "Which of the camera's frames are parts.",
            Section::Thresholds => "Overrides of the thresholds that the model was given when it was taught.",
            Section::Outputs => "What becomes of verdicts.",
            Section::Modbus => {
                "Verdicts to a PLC by Modbus/TCP. The map of coils and registers is in docs/outputs.md."
            }
            Section::Webhook => "Verdicts to a web server, one POST of JSON each. See docs/outputs.md.",
            Section::CameraHealth => {
                "What the line's pictures must be like, so that a dirty lens or a failed lamp is not taken for bad \
                 parts. A line whose pictures of late (a mean over about 16) are not so is reported by /healthz, the \
                 log and inspectd_line_healthy; it goes on judging. inspectd_image_* show what is measured, over \
                 the whole frame: choose limits by what they show on a good day."
            }
        }
    }

    /// The keys of this section, in the table's order.
    pub fn keys(self) -> impl Iterator<Item = &'static Key> {
        KEYS.iter().filter(move |key| key.section == self)
    }

    pub fn key(self, name: &str) -> Option<&'static Key> {
        self.keys().find(|key| key.name == name)
    }
}

/// What a value may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    Text,
    /// `a-z 0-9 _ -`, at most 63: it becomes a metric label and a part of file names.
    Name,
    /// Relative paths start from the folder of the configuration file.
    Path,
    /// A path, `-` for standard output, or `off`.
    Sink,
    /// `IP:PORT`, or `off`.
    Address,
    /// One of these schemes, a host, and no user or password: those would end up in logs.
    Url(&'static [&'static str]),
    /// `cpu`, or `cuda:N`.
    Device,
    Integer {
        min: u64,
        max: u64,
    },
    Float,
    Bool,
    Choice(&'static [&'static str]),
    /// `[x, y, width, height]`.
    Rect,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kind::Text => f.write_str("text"),
            Kind::Name => f.write_str("a name"),
            Kind::Path => f.write_str("a path"),
            Kind::Sink => f.write_str("a path, \"-\" or \"off\""),
            Kind::Address => f.write_str("\"IP:PORT\" or \"off\""),
            Kind::Url(schemes) => {
                f.write_str("a URL that begins with ")?;
                for (i, scheme) in schemes.iter().enumerate() {
                    write!(f, "{}{scheme}://", if i == 0 { "" } else { " or " })?;
                }
                Ok(())
            }
            Kind::Device => f.write_str("\"cpu\" or \"cuda:N\""),
            Kind::Integer { min, max } => write!(f, "a whole number from {min} to {max}"),
            Kind::Float => f.write_str("a number"),
            Kind::Bool => f.write_str("true or false"),
            Kind::Choice(choices) => {
                for (i, choice) in choices.iter().enumerate() {
                    let before = match i {
                        0 => "",
                        _ if i + 1 == choices.len() => " or ",
                        _ => ", ",
                    };
                    write!(f, "{before}\"{choice}\"")?;
                }
                Ok(())
            }
            Kind::Rect => f.write_str("[x, y, width, height]"),
        }
    }
}

/// What is taken where the file says nothing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Default {
    /// The file must say it.
    Required,
    /// Nothing: the text says what that means.
    Absent,
    /// A TOML literal.
    Value(&'static str),
}

/// What a change costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reload {
    /// Taken over on SIGHUP, between two frames.
    Hot,
    /// The line's camera is started anew, the other lines go on.
    Line,
    /// The daemon must be started anew.
    Daemon,
}

impl fmt::Display for Reload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reload::Hot => "hot",
            Reload::Line => "line",
            Reload::Daemon => "daemon",
        })
    }
}

/// One key.
#[derive(Debug, PartialEq)]
pub struct Key {
    pub section: Section,
    pub name: &'static str,
    pub kind: Kind,
    pub default: Default,
    pub unit: &'static str,
    pub reload: Reload,
    /// What it does, in sentences.
    pub text: &'static str,
    /// A TOML literal, shown in the example and in error messages.
    pub example: &'static str,
}

const fn key(section: Section, name: &'static str, kind: Kind, default: Default, reload: Reload) -> Key {
    let example = match default {
        Default::Value(literal) => literal,
        _ => "",
    };
    Key { section, name, kind, default, unit: "", reload, text: "", example }
}

impl Key {
    /// As seen from its line, or from the file: `thresholds.bad`, `source`, `daemon.http`.
    pub fn path(&self) -> String {
        match self.section {
            Section::Line => self.name.to_owned(),
            section => format!("{}.{}", section.name(), self.name),
        }
    }

    const fn unit(mut self, unit: &'static str) -> Self {
        self.unit = unit;
        self
    }

    const fn example(mut self, example: &'static str) -> Self {
        self.example = example;
        self
    }

    const fn text(mut self, text: &'static str) -> Self {
        self.text = text;
        self
    }
}

use self::Default::{Absent, Required, Value};
use self::Section::{
    Archive, CameraHealth, Daemon, Line, Modbus, Mqtt, Outputs, Thresholds, Trigger, Webhook,
};

pub static KEYS: &[Key] = &[
    key(Daemon, "http", Kind::Address, Value("\"127.0.0.1:9464\""), Reload::Daemon).text(
        "Where /metrics, /healthz and the status page are served. Port 0 takes a free port, which is \
         logged and written to STATE_DIR/http_address. \"off\" serves nothing.",
    ),
    key(Daemon, "device", Kind::Device, Value("\"cpu\""), Reload::Daemon).text(
        "Where networks run: \"cpu\", or \"cuda:0\" for the first GPU. A GPU that cannot be used or fails \
         is replaced by the CPU, which is logged and counted.",
    ),
    key(Daemon, "threads", Kind::Integer { min: 0, max: 256 }, Value("0"), Reload::Daemon)
        .text("Threads that compute. 0 takes one per processor core."),
    key(Daemon, "batch", Kind::Integer { min: 1, max: 4 }, Value("1"), Reload::Daemon).unit("frames").text(
        "Frames that a GPU judges at once, of lines with the same model file. Only frames that wait at the same \
         moment are: no frame waits for others. The CPU judges one at a time.",
    ),
    key(Daemon, "drain_ms", Kind::Integer { min: 0, max: 600_000 }, Value("5000"), Reload::Daemon)
        .unit("ms")
        .text(
            "After SIGTERM, how long the frames in flight may take to be judged. What is left then is \
             counted as dropped.",
        ),
    key(Daemon, "state_dir", Kind::Path, Absent, Reload::Daemon).example("\"/var/lib/inspectd\"").text(
        "Folder for the daemon's own files. If absent, $STATE_DIRECTORY (systemd sets it), else none \
         are written.",
    ),
    key(
        Daemon,
        "log_format",
        Kind::Choice(&["auto", "text", "json", "journald"]),
        Value("\"auto\""),
        Reload::Daemon,
    )
    .text(
        "How log lines look. \"auto\" is journald under systemd and text elsewhere. The log goes to \
         standard error.",
    ),
    key(
        Daemon,
        "log_level",
        Kind::Choice(&["error", "warn", "info", "debug", "trace"]),
        Value("\"info\""),
        Reload::Daemon,
    )
    .text("Least severe log line that is written. $INSPECTD_LOG, if set, wins."),
    key(Daemon, "token_file", Kind::Path, Absent, Reload::Daemon).example("\"/etc/inspectd/token\"").text(
        "File with the token (at least 16 characters) that a client needs to change something over HTTP: \
         `Authorization: Bearer TOKEN`. If absent, clients on this machine alone may. Reading is free.",
    ),
    key(Archive, "folder", Kind::Path, Absent, Reload::Daemon)
        .example("\"/var/lib/inspectd/archive\"")
        .text("Folder for inspectd.sqlite and its pictures. If absent, there is no archive."),
    key(Archive, "images", Kind::Choice(&["bad", "unsure", "all"]), Value("\"unsure\""), Reload::Hot).text(
        "Which parts' pictures are kept, without loss: bad ones, unsure and bad ones, or all. Parts whose \
         picture the model could not judge go with the bad ones.",
    ),
    key(Archive, "good_sample", Kind::Integer { min: 0, max: 1_000_000 }, Value("1000"), Reload::Hot)
        .text("Of good parts, the picture of one in so many is kept as well. 0 keeps none."),
    key(Archive, "keep_days", Kind::Integer { min: 1, max: 36_500 }, Value("90"), Reload::Hot)
        .unit("days")
        .text("Older parts are removed, but for those that a person has reviewed."),
    key(Archive, "keep_mb", Kind::Integer { min: 10, max: 1_000_000_000 }, Value("20000"), Reload::Hot)
        .unit("MB")
        .text(
            "Pictures and database together. When they are more, the oldest pictures go first, reviewed ones \
             last.",
        ),
    key(Archive, "wait_ms", Kind::Integer { min: 0, max: 60_000 }, Value("50"), Reload::Hot).unit("ms").text(
        "A verdict goes to the outputs when it is in the archive, or after this long without it, which is \
         counted. 0 never waits.",
    ),
    key(Archive, "power_safe", Kind::Bool, Value("false"), Reload::Daemon).text(
        "Wait for the disk at each verdict. Without it, verdicts outlive the end of inspectd, however it comes, \
         but a power cut may take the last ones.",
    ),
    key(Mqtt, "broker", Kind::Url(&["mqtt", "mqtts"]), Absent, Reload::Hot)
        .example("\"mqtt://broker.example:1883\"")
        .text("The broker: mqtt://HOST:PORT, or mqtts:// for TLS. If absent, nothing is sent."),
    key(Mqtt, "client_id", Kind::Text, Value("\"inspectd\""), Reload::Hot)
        .text("The name that the broker knows this daemon by. Each daemon at a broker needs its own."),
    key(Mqtt, "prefix", Kind::Text, Value("\"inspectd\""), Reload::Hot).text(
        "Topics are PREFIX/LINE/verdict, PREFIX/LINE/state and PREFIX/status. Each daemon at a broker needs \
         its own prefix.",
    ),
    key(Mqtt, "username", Kind::Text, Absent, Reload::Hot)
        .example("\"inspectd\"")
        .text("The name to log in to the broker with. If absent, no login."),
    key(Mqtt, "password_file", Kind::Path, Absent, Reload::Hot)
        .example("\"/etc/inspectd/mqtt_password\"")
        .text("File whose first line is the password. Read at start and at each reload."),
    key(Mqtt, "ca_file", Kind::Path, Absent, Reload::Hot).example("\"/etc/inspectd/broker_ca.pem\"").text(
        "For mqtts://: PEM file of the authorities that may vouch for the broker. If absent, the system's, \
         /etc/ssl/certs/ca-certificates.crt.",
    ),
    key(Line, "name", Kind::Name, Required, Reload::Daemon)
        .example("\"cam1\"")
        .text("What the line is called in verdicts, metrics, logs and file names. Unique."),
    key(Line, "model", Kind::Path, Required, Reload::Hot)
        .example("\"/var/lib/inspectd/part.safetensors\"")
        .text(
            "The taught model, made by `inspectd teach`. A reload also takes over a model that was taught anew \
             under the same name: it is read and warmed up beside the one in use, then takes its place between \
             two frames.",
        ),
    key(Line, "source", Kind::Text, Required, Reload::Line)
        .example("\"v4l2src device=/dev/video0 ! video/x-raw,width=1280,height=720,framerate=30/1\"")
        .text(
            "The camera, as given to gst-launch-1.0 but without a sink. Raw video in GRAY8, RGB, BGR, BGRx, \
             NV12, I420 or YUY2 is taken as it is, and so are Bayer mosaics of 8 bits if they are asked for \
             (`! video/x-bayer,format=rggb`, or grbg, gbrg, bggr); anything else that is raw is converted. JPEG \
             (`! image/jpeg,width=1280,height=720`) is decoded here, without `! jpegdec`: a picture that was cut or \
             damaged on the way is then seen, and its part is unjudged.",
        ),
    key(Line, "roi", Kind::Rect, Absent, Reload::Hot).unit("pixels").example("[320, 40, 640, 640]").text(
        "Region of interest in the frame: [x, y, width, height]. If absent, the whole frame. The model \
         must have been taught on the same region.",
    ),
    key(Line, "slots", Kind::Integer { min: 8, max: 1024 }, Value("12"), Reload::Line).unit("frames").text(
        "Frames the line's memory pool holds, for ever: being filled, queued, judged, and waiting to \
         become a heatmap. At least queue + 7.",
    ),
    key(Line, "queue", Kind::Integer { min: 1, max: 1000 }, Value("2"), Reload::Hot)
        .unit("frames")
        .text("Frames that may wait to be judged."),
    key(Line, "drop", Kind::Choice(&["oldest", "newest", "block"]), Value("\"oldest\""), Reload::Line).text(
        "What gives way when the queue is full: the frame that waited longest, the one that just came, \
         or the camera, which has to wait (for files). A frame dropped here is counted in \
         inspectd_frames_dropped_total and gets no verdict.",
    ),
    key(Line, "deadline_ms", Kind::Integer { min: 0, max: 3_600_000 }, Value("500"), Reload::Hot)
        .unit("ms")
        .text(
            "From capture to verdict. A part that is not judged by then gets the verdict \"late\" at that \
             moment. 0 waits for ever.",
        ),
    key(Line, "on_eos", Kind::Choice(&["restart", "stop", "loop"]), Value("\"restart\""), Reload::Line).text(
        "When the source ends. \"restart\": a fault, the camera is started again. \"stop\": the line is \
         done; when every line is, the daemon ends. \"loop\": files are played again from the start.",
    ),
    key(Line, "sync", Kind::Bool, Value("false"), Reload::Line)
        .text("Hand frames on at the pace of their timestamps (files) instead of as they come (cameras)."),
    key(Line, "stall_timeout_ms", Kind::Integer { min: 0, max: 3_600_000 }, Value("5000"), Reload::Line)
        .unit("ms")
        .text(
            "A source that gives no frame for this long is started again, and /healthz says so. 0 never \
             (for triggered cameras).",
        ),
    key(
        Trigger,
        "mode",
        Kind::Choice(&["continuous", "software", "hardware"]),
        Value("\"continuous\""),
        Reload::Line,
    )
    .text(
        "\"continuous\": every frame is a part. \"hardware\": so it is, but the camera sends frames only when it is \
         triggered, so its silence is no fault (stall_timeout_ms does not count). \"software\": the first frame that \
         is captured after POST /lines/NAME/trigger {\"part_id\": \"A17\"} is the part, and other frames are dropped \
         as not_triggered.",
    ),
    key(Trigger, "frame_within_ms", Kind::Integer { min: 1, max: 600_000 }, Value("1000"), Reload::Hot)
        .unit("ms")
        .text(
            "How long after a software trigger its frame may come. A part without a frame by then is late, with \
             reason no_frame.",
        ),
    key(Thresholds, "unsure", Kind::Float, Absent, Reload::Hot)
        .unit("score")
        .example("0.8")
        .text("Scores below are good. If absent, the model's own."),
    key(Thresholds, "bad", Kind::Float, Absent, Reload::Hot).unit("score").example("1.2").text(
        "Scores from here on are bad; between the two a person should look. If absent, the model's own.",
    ),
    key(Outputs, "verdicts", Kind::Sink, Value("\"-\""), Reload::Hot)
        .text("Where verdicts go, one JSON object a line: a file (appended to), \"-\" or \"off\"."),
    key(Outputs, "heatmaps", Kind::Path, Absent, Reload::Hot)
        .example("\"/var/lib/inspectd/heatmaps\"")
        .text("Folder for pictures of what was found, the heatmap laid over the frame. If absent, none."),
    key(Outputs, "heatmaps_of", Kind::Choice(&["bad", "unsure", "all"]), Value("\"unsure\""), Reload::Hot)
        .text("Which parts get a picture: bad ones, unsure and bad ones, or all."),
    key(Outputs, "heatmaps_keep", Kind::Integer { min: 1, max: 1_000_000 }, Value("1000"), Reload::Hot)
        .unit("pictures")
        .text("Pictures kept per line; the oldest go first."),
    key(Modbus, "address", Kind::Address, Absent, Reload::Hot)
        .example("\"192.168.0.10:502\"")
        .text("The PLC, or the remote I/O. If absent or \"off\", nothing is written."),
    key(Modbus, "unit", Kind::Integer { min: 0, max: 255 }, Value("1"), Reload::Hot)
        .text("Modbus unit identifier; matters behind gateways."),
    key(Modbus, "coils", Kind::Integer { min: 0, max: 65_533 }, Value("0"), Reload::Hot)
        .text("First of three coils: OK, NG, READY. Counted from 0."),
    key(Modbus, "registers", Kind::Integer { min: 0, max: 65_526 }, Value("0"), Reload::Hot).text(
        "First of ten holding registers: sequence, verdict, score, part, heartbeat, acknowledgement. \
         Counted from 0.",
    ),
    key(Modbus, "timeout_ms", Kind::Integer { min: 10, max: 60_000 }, Value("200"), Reload::Hot)
        .unit("ms")
        .text("How long the PLC may take to answer; then the connection is made anew."),
    key(Modbus, "heartbeat_ms", Kind::Integer { min: 20, max: 60_000 }, Value("500"), Reload::Hot)
        .unit("ms")
        .text("How often the heartbeat register moves on. The PLC must stop trusting OK when it stands still."),
    key(Modbus, "handshake", Kind::Bool, Value("false"), Reload::Hot).text(
        "Write the next result only when the PLC has written the sequence of the last one into the \
         acknowledgement registers. Of results that come meanwhile the newest is written next.",
    ),
    key(Modbus, "ack_timeout_ms", Kind::Integer { min: 10, max: 600_000 }, Value("1000"), Reload::Hot)
        .unit("ms")
        .text("With handshake: how long an acknowledgement is waited for; then the result counts as lost."),
    key(Webhook, "url", Kind::Url(&["http", "https"]), Absent, Reload::Hot)
        .example("\"https://mes.example/inspection\"")
        .text("Where verdicts are POSTed. If absent, nothing is sent. Redirects are not followed."),
    key(Webhook, "of", Kind::Choice(&["bad", "unsure", "all"]), Value("\"unsure\""), Reload::Hot).text(
        "Which verdicts are sent: \"bad\" ones with those that are late or unjudged, those and \"unsure\" \
         ones, or all.",
    ),
    key(Webhook, "timeout_ms", Kind::Integer { min: 10, max: 60_000 }, Value("2000"), Reload::Hot)
        .unit("ms")
        .text("How long the server may take to answer. Three tries, then the verdict counts as lost."),
    key(Webhook, "token_file", Kind::Path, Absent, Reload::Hot)
        .example("\"/etc/inspectd/webhook_token\"")
        .text(
            "File whose first line is sent as `Authorization: Bearer`. Read at start and at each reload. \
             If absent, none is sent.",
        ),
    key(CameraHealth, "frozen_after", Kind::Integer { min: 0, max: 1_000_000 }, Value("100"), Reload::Hot)
        .unit("frames")
        .text(
            "So many frames in a row that are the same as the one before are a fault: the noise of a real camera \
             makes no two alike. 0 never (for pictures from files).",
        ),
    key(CameraHealth, "contrast_min", Kind::Float, Value("0.5"), Reload::Hot)
        .unit("grey levels")
        .text("Standard deviation of the luma, at least. Less has only a covered lens or a dead sensor. 0 never."),
    key(CameraHealth, "brightness_min", Kind::Float, Absent, Reload::Hot)
        .unit("grey levels")
        .example("40.0")
        .text("Mean luma, at least: 0 is black, 255 white. If absent, any."),
    key(CameraHealth, "brightness_max", Kind::Float, Absent, Reload::Hot)
        .unit("grey levels")
        .example("210.0")
        .text("Mean luma, at most. If absent, any."),
    key(CameraHealth, "sharpness_min", Kind::Float, Absent, Reload::Hot)
        .example("60.0")
        .text(
            "Variance of the luma's Laplacian, at least. Its scale is the scene's own: half of what a clean lens \
             shows is a good limit. If absent, any.",
        ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_documented_and_named_once() {
        for (i, key) in KEYS.iter().enumerate() {
            assert!(key.text.ends_with('.'), "{} needs a sentence", key.name);
            assert!(!key.example.is_empty(), "{} needs an example", key.name);
            assert!(
                KEYS[..i].iter().all(|other| (other.section, other.name) != (key.section, key.name)),
                "{} is there twice",
                key.name
            );
        }
    }

    #[test]
    fn keys_in_milliseconds_say_so_in_name_and_unit() {
        for key in KEYS {
            assert_eq!(key.name.ends_with("_ms"), key.unit == "ms", "{}", key.name);
        }
    }
}
