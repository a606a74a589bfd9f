//! The configuration from text to plan.

use std::path::Path;

use super::keys::Default;
use super::*;

const GOOD: &str = "\
[daemon]
threads = 2

[[line]]
name = \"left\"
model = \"part.safetensors\"
source = \"videotestsrc\"

[[line]]
name = \"right\"
model = \"part.safetensors\"
source = \"videotestsrc\"
";

fn read(text: &str) -> Result<Config, Mistakes> {
    understand(text, Path::new("c.toml"), Path::new("/etc/inspectd"), None)
}

fn good(text: &str) -> Config {
    read(text).unwrap_or_else(|mistakes| panic!("{mistakes}"))
}

/// `line:column message | help` of each mistake.
fn mistakes(text: &str) -> Vec<String> {
    let found = read(text).expect_err("the configuration should be refused").0;
    found
        .iter()
        .map(|d| format!("{}:{} {} | {}", d.line, d.column, d.message, d.help.as_deref().unwrap_or("")))
        .collect()
}

#[test]
fn defaults_hold_where_the_file_says_nothing() {
    let config = good(GOOD);
    assert_eq!(config.daemon.threads, 2);
    assert_eq!(config.daemon.http, Some("127.0.0.1:9464".parse().unwrap()));
    assert_eq!(config.daemon.drain.as_millis(), 5000);
    let line = &config.lines[0];
    assert_eq!(line.model, Path::new("/etc/inspectd/part.safetensors"));
    assert_eq!((line.slots, line.queue, line.drop), (12, 2, DropPolicy::Oldest));
    assert_eq!(line.deadline.map(|d| d.as_millis()), Some(500));
    assert_eq!(line.outputs.verdicts, Sink::Stdout);
    assert_eq!(line.roi, None);
}

#[test]
fn zero_milliseconds_mean_never() {
    let config = good(&GOOD.replacen("source", "deadline_ms = 0\nstall_timeout_ms = 0\nsource", 1));
    assert_eq!((config.lines[0].deadline, config.lines[0].stall_timeout), (None, None));
}

#[test]
fn an_unknown_key_is_refused_with_its_place_and_the_nearest_key() {
    assert_eq!(
        mistakes(&GOOD.replacen("source =", "deadlin_ms = 7\nsource =", 1)),
        ["7:1 `deadlin_ms` is not a key of [[line]] | deadline_ms"]
    );
}

#[test]
fn a_key_under_the_wrong_table_is_sent_to_the_right_one() {
    assert_eq!(
        mistakes(&GOOD.replacen("source =", "http = \"off\"\nsource =", 1)),
        ["7:1 `http` is not a key of [[line]] | put it under [daemon]"]
    );
    assert_eq!(
        mistakes(&format!("queue = 3\n{GOOD}")),
        ["1:1 `queue` is not known here | put it under [[line]]"]
    );
}

#[test]
fn a_misspelt_table_is_refused_with_the_nearest() {
    assert_eq!(
        mistakes(&GOOD.replace("[daemon]", "[deamon]")),
        ["1:2 `deamon` is not known here | [daemon]"]
    );
    assert_eq!(
        mistakes(&GOOD.replace("[[line]]", "[[lines]]")),
        ["4:3 `lines` is not known here | [[line]]"]
    );
}

#[test]
fn a_line_in_single_brackets_is_told_to_use_two() {
    let text = "[line]\nname = \"a\"\nmodel = \"m\"\nsource = \"videotestsrc\"\n";
    assert_eq!(
        mistakes(text),
        ["1:1 there may be several lines, so each is written with two brackets | [[line]]"]
    );
}

#[test]
fn wrong_types_and_ranges_are_told_together_in_the_order_of_the_file() {
    let text = "\
[daemon]
threads = \"two\"
drain_ms = 5.5
http = \"localhost\"

[[line]]
name = \"Left Cam\"
model = 7
source = \"\"
queue = 0
drop = \"oldset\"
roi = [1, 2, 3]
sync = 1
[line.thresholds]
bad = \"high\"
[line.outputs]
heatmaps_keep = -1
";
    assert_eq!(
        mistakes(text),
        [
            "2:11 `threads` is a string, and must be a whole number from 0 to 256 | threads = 0",
            "3:12 `drain_ms` is a float, and must be a whole number from 0 to 600000 | drain_ms = 5000",
            "4:8 \"localhost\" is neither IP:PORT nor \"off\" | http = \"127.0.0.1:9464\"",
            "7:8 \"Left Cam\" is not a name: 1 to 63 of a-z, 0-9, _ and - are allowed | name = \"left-cam\"",
            "8:9 `model` is an integer, and must be a path | model = \"/var/lib/inspectd/part.safetensors\"",
            "9:10 `source` is empty | source = \"v4l2src device=/dev/video0 ! video/x-raw,width=1280,height=720,framerate=30/1\"",
            "10:9 `queue` is 0, and must be a whole number from 1 to 1000 | queue = 2",
            "11:8 `drop` cannot be \"oldset\" | drop = \"oldest\"",
            "12:7 `roi` is four whole numbers, [x, y, width, height] | roi = [320, 40, 640, 640]",
            "13:8 `sync` is an integer, and must be true or false | sync = false",
            "15:7 `bad` is a string, and must be a number | bad = 1.2",
            "17:17 `heatmaps_keep` is -1, and must be a whole number from 1 to 1000000 | heatmaps_keep = 1000",
        ]
    );
}

#[test]
fn required_keys_are_asked_for_at_the_header() {
    assert_eq!(
        mistakes("[[line]]\nname = \"a\"\nmodel = \"m\"\n"),
        [
            "1:1 [[line]] has no `source` | source = \"v4l2src device=/dev/video0 ! video/x-raw,width=1280,height=720,framerate=30/1\""
        ]
    );
}

#[test]
fn what_cannot_work_together_is_refused() {
    let with = |line: &str| GOOD.replacen("source =", &format!("{line}\nsource ="), 1);
    assert_eq!(
        mistakes(&GOOD.replace("\"right\"", "\"left\"")),
        ["10:8 two lines are called \"left\" | name = \"left-2\""]
    );
    assert_eq!(
        mistakes(&with("queue = 10")),
        ["7:9 a queue of 10 does not fit 12 slots: 7 are needed beside it | slots = 17"]
    );
    assert_eq!(
        mistakes(&with("roi = [0, 0, 0, 5]")),
        ["7:7 the region of interest is 0 x 5 pixels: it shows nothing | roi = [320, 40, 640, 640]"]
    );
    assert_eq!(
        mistakes(&format!("{GOOD}[line.thresholds]\nunsure = 2\nbad = 1.5\n")),
        [
            "14:10 `unsure` (2) is above `bad` (1.5), so no part could ever be unsure | unsure = 1.5 and bad = 2"
        ]
    );
}

#[test]
fn two_lines_may_not_share_a_folder_of_heatmaps() {
    let outputs = "[line.outputs]\nheatmaps = \"maps/\"\n";
    let text =
        GOOD.replacen("\n[[line]]\nname = \"right\"", &format!("{outputs}\n[[line]]\nname = \"right\""), 1);
    assert_eq!(
        mistakes(&format!("{text}{}", outputs.replace("maps/", "./maps"))),
        [
            "16:12 line \"left\" already keeps its heatmaps in /etc/inspectd/maps | heatmaps = \"/etc/inspectd/maps/right\""
        ]
    );
}

#[test]
fn broken_toml_is_told_with_its_place() {
    let found = mistakes(&GOOD.replace("threads = 2", "threads = "));
    assert!(found[0].starts_with("2:"), "{found:?}");
    assert!(found[0].contains("this is not TOML"), "{found:?}");
}

#[test]
fn an_empty_file_has_nothing_to_inspect() {
    assert_eq!(
        mistakes(""),
        ["1:1 there is no [[line]], so there is nothing to inspect | [[line]] with name, model and source"]
    );
}

#[test]
fn no_text_makes_reading_panic() {
    for text in [
        "\0",
        "[[line",
        "line = 3",
        "line = [1]",
        "daemon = 1",
        "[[line]]\nthresholds = 1",
        "a.b.c = {",
        "[line.line]",
    ] {
        assert!(read(text).is_err(), "{text}");
    }
}

#[test]
fn the_example_is_accepted_as_it_stands() {
    good(&example());
}

#[test]
fn missing_files_are_told_with_the_command_that_makes_them() {
    let folder = tempfile::tempdir().unwrap();
    let text = format!("{GOOD}[line.outputs]\nverdicts = \"a/b/v.jsonl\"\nheatmaps = \"taken/maps\"\n");
    std::fs::write(folder.path().join("taken"), "").unwrap();
    let found = understand(&text, Path::new("c.toml"), folder.path(), Some(&|_| Vec::new())).unwrap_err().0;
    let shown: Vec<String> = found.iter().map(|d| format!("{}:{} {}", d.line, d.column, d.message)).collect();
    assert!(shown[0].starts_with("6:9 the model") && shown[0].contains("cannot be read"), "{shown:?}");
    assert!(found[0].help.as_ref().unwrap().starts_with("inspectd teach"), "{found:?}");
    assert!(shown[2].starts_with("15:12") && shown[2].ends_with("taken is not a folder"), "{shown:?}");
    assert_eq!(shown.len(), 3, "a folder that can be made is no mistake: {shown:?}");
    assert!(!folder.path().join("a").exists(), "looking makes nothing");
}

/// Everything that is off unless it is named, named.
const ALL_ON: &str = "\
[daemon]

[archive]
folder = \"archive\"

[mqtt]
broker = \"mqtt://plant\"
username = \"line4\"

[[line]]
name = \"left\"
model = \"part.safetensors\"
source = \"videotestsrc\"

[line.modbus]
address = \"10.0.0.7:502\"

[line.webhook]
url = \"http://mes/inspection\"

[[line]]
name = \"right\"
model = \"part.safetensors\"
source = \"videotestsrc\"
";

/// [`ALL_ON`] with `key` of the first line (or of a table beside the lines) set to something else than now.
fn changed(key: &'static Key) -> String {
    let other = match (key.kind, key.default) {
        (keys::Kind::Integer { .. }, Default::Value(v)) => format!("{}", v.parse::<u64>().unwrap() + 1),
        (keys::Kind::Choice(all), Default::Value(v)) => {
            format!("{:?}", all.iter().find(|c| format!("{c:?}") != v).unwrap())
        }
        (keys::Kind::Float, Default::Value(_)) => "0.125".to_owned(),
        (keys::Kind::Bool, _) => "true".to_owned(),
        (keys::Kind::Device, _) => "\"cuda:1\"".to_owned(),
        (keys::Kind::Address | keys::Kind::Sink, _) => "\"off\"".to_owned(),
        (keys::Kind::Text, Default::Value(_)) => "\"other\"".to_owned(),
        _ => key.example.to_owned(),
    };
    let header = format!("{}\n", key.section.header());
    let Some(table) = ALL_ON.find(&header).map(|at| at + header.len()) else {
        let set = format!("{header}{} = {other}\n", key.name);
        return ALL_ON.replacen(
            "\n[[line]]\nname = \"right\"",
            &format!("\n{set}\n[[line]]\nname = \"right\""),
            1,
        );
    };
    let (before, after) = ALL_ON.split_at(table);
    let now = format!("{} = ", key.name);
    let end = after.find("\n[").unwrap_or(after.len());
    let kept: String =
        after[..end].lines().filter(|line| !line.starts_with(&now)).map(|l| format!("{l}\n")).collect();
    format!("{before}{now}{other}\n{kept}{}", &after[end..])
}

#[test]
fn each_key_of_the_table_reaches_the_plan_in_its_class_and_changes_the_hash() {
    let old = good(ALL_ON);
    for key in KEYS {
        let new = good(&changed(key));
        assert_ne!(old.hash(), new.hash(), "{}", key.name);
        let plan = Plan::of(diff(&old, &new));
        let count = (plan.hot.len(), plan.restart_line.len(), plan.restart_daemon.len());
        let expected = match (key.name, key.reload) {
            // A renamed line is one that went and one that came.
            ("name", _) => (0, 0, 2),
            (_, Reload::Hot) => (1, 0, 0),
            (_, Reload::Line) => (0, 1, 0),
            (_, Reload::Daemon) => (0, 0, 1),
        };
        assert_eq!(count, expected, "{}: {plan}", key.name);
    }
}

#[test]
fn each_key_of_the_table_changes_what_is_meant() {
    let strip = |mut config: Config| {
        config.settings.clear();
        config.lines.iter_mut().for_each(|line| line.settings.clear());
        config
    };
    let old = strip(good(ALL_ON));
    for key in KEYS {
        assert_ne!(old, strip(good(&changed(key))), "{} is read by nobody", key.name);
    }
}

#[test]
fn outputs_over_the_network_are_off_unless_they_are_named() {
    let config = good(GOOD);
    assert!(config.mqtt.is_none() && config.lines.iter().all(|l| l.modbus.is_none() && l.webhook.is_none()));
    let on = good(ALL_ON);
    assert_eq!(on.mqtt.unwrap().broker.host, "plant");
    let modbus = on.lines[0].modbus.as_ref().unwrap();
    assert_eq!((modbus.unit, modbus.timeout.as_millis(), modbus.handshake), (1, 200, false));
    assert!(on.lines[1].modbus.is_none(), "each line has its own");
    assert!(good(&ALL_ON.replace("10.0.0.7:502", "off")).lines[0].modbus.is_none());
}

#[test]
fn mistakes_about_the_network_are_told_and_passwords_are_not() {
    let mqtt = |keys: &str| mistakes(&format!("[mqtt]\n{keys}\n{GOOD}"));
    let told = mqtt("broker = \"mqtt://me:gehe1m@plant\"");
    assert!(told[0].starts_with("2:10 `broker` names a user or a password"), "{told:?}");
    assert!(
        !read(&format!("[mqtt]\nbroker = \"mqtt://me:gehe1m@plant\"\n{GOOD}"))
            .unwrap_err()
            .to_string()
            .contains("gehe1m")
    );
    assert_eq!(
        mqtt("broker = \"http://plant\""),
        ["2:10 `broker` must begin with mqtt:// or mqtts:// | broker = \"mqtt://broker.example:1883\""]
    );
    assert_eq!(
        mqtt("broker = \"mqtt://plant/x\""),
        ["2:10 a broker has no path | broker = \"mqtt://plant\""]
    );
    assert_eq!(
        mqtt("prefix = \"plant/#\"\nbroker = \"mqtt://plant\""),
        [
            "2:10 a prefix of topics holds no + or #, and neither begins with $ or / nor ends with / | prefix = \"plant\""
        ]
    );
    assert_eq!(
        mqtt("broker = \"mqtt://plant\"\npassword_file = \"x\""),
        ["3:17 a password without a `username` is not sent | username = \"inspectd\""]
    );
}

#[test]
fn comments_and_spelt_out_defaults_change_nothing() {
    let old = good(GOOD);
    let new = good(&GOOD.replace("threads = 2", "# why\nthreads = 0x2\ndrain_ms = 5_000"));
    assert_eq!(diff(&old, &new), []);
    assert_eq!(old.hash(), new.hash());
}

#[test]
fn a_plan_reads_as_a_sentence() {
    let old = good(GOOD);
    let new = good(&format!(
        "{}[line.thresholds]\nbad = 1.5\n",
        GOOD.replace("threads = 2", "threads = 4").replace("name = \"left\"", "name = \"middle\"")
    ));
    assert_eq!(
        Plan::of(diff(&old, &new)).to_string(),
        "daemon: threads from 2 to 4; line middle was added; line left was removed; line right: bad from nothing to 1.5"
    );
}

#[test]
fn lines_in_another_order_cost_nothing() {
    let old = good(GOOD);
    let (left, right) = GOOD.split_at(GOOD.rfind("[[line]]").unwrap());
    let (head, left) = left.split_at(left.find("[[line]]").unwrap());
    let swapped = format!("{head}{right}{left}");
    let plan = Plan::of(diff(&old, &good(&swapped)));
    assert_eq!(plan.hot, [Change::Reordered]);
    assert!(!plan.needs_restart());
}

#[test]
fn what_another_room_finds_wrong_is_told_at_its_key() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("part.safetensors"), "").unwrap();
    let examine = |line: &LineConfig| {
        let complaint = |key| Complaint { key, message: format!("{} is odd", line.name), help: None };
        if line.name.as_str() == "right" {
            vec![complaint("source"), complaint("thresholds.bad")]
        } else {
            vec![]
        }
    };
    let text = format!("{GOOD}[line.thresholds]\nbad = 1.5\n");
    let found = understand(&text, Path::new("c.toml"), folder.path(), Some(&examine)).unwrap_err().0;
    let shown: Vec<_> = found.iter().map(|d| (d.line, d.column, d.key.as_str())).collect();
    assert_eq!(shown, [(12, 10, "line[1].source"), (14, 7, "line[1].thresholds.bad")]);
}

#[test]
fn passwords_in_sources_are_not_shown() {
    let old = good(GOOD);
    let new = good(&GOOD.replacen("videotestsrc", "rtspsrc location=rtsp://me:secret@cam/1 ! decodebin", 1));
    assert_eq!(
        Plan::of(diff(&old, &new)).to_string(),
        "line left: source from \"videotestsrc\" to \"rtspsrc location=rtsp://***@cam/1 ! decodebin\""
    );
}
