//! What `monitoring/` promises, held against the real things: the table of metrics in code, promtool, and a
//! Prometheus that scrapes a daemon.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use inspectd::telemetry::{Kind, METRICS};
use serde_json::Value;

#[path = "../daemon/mod.rs"]
mod daemon;
mod dashboard;
#[path = "../http/mod.rs"]
mod http;
#[path = "../untaught/mod.rs"]
mod untaught;

/// Long enough for a debug build on a loaded machine; a good run takes a tenth of it.
const PATIENCE: Duration = Duration::from_secs(120);

const UPDATE: &str = "run: UPDATE_MONITORING=1 cargo test --test monitoring";

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(repository(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The file is `text`, or becomes it if that is asked for.
fn holds(path: &str, text: &str) {
    if std::env::var_os("UPDATE_MONITORING").is_some() {
        std::fs::write(repository(path), text).unwrap();
    }
    assert!(read(path) == text, "{path} is not what the code says; {UPDATE}");
}

#[test]
fn the_dashboard_file_is_the_table_of_panels() {
    holds("monitoring/dashboard.json", &dashboard::json());
}

#[test]
fn the_documentation_lists_the_metrics_of_the_code() {
    const BEGIN: &str = "<!-- metrics: UPDATE_MONITORING=1 cargo test --test monitoring -->\n";
    const END: &str = "<!-- end of metrics -->\n";
    let mut table = "| metric | kind | labels | |\n|---|---|---|---|\n".to_owned();
    for metric in METRICS {
        let name = metric.full_name();
        let labels = metric.labels.join(", ");
        table.push_str(&format!("| `{name}` | {} | {labels} | {} |\n", metric.kind.name(), metric.help));
    }
    let docs = read("docs/monitoring.md");
    let (before, rest) = docs.split_once(BEGIN).expect("the table has a begin");
    let (_, after) = rest.split_once(END).expect("the table has an end");
    holds("docs/monitoring.md", &format!("{before}{BEGIN}{table}{END}{after}"));
}

/// Names of our metrics in a text; `None` for one that the code does not know.
fn names(text: &str) -> Vec<(&str, Option<&'static str>)> {
    let mut found = Vec::new();
    for (at, prefix) in text.match_indices("inspectd_") {
        let rest = &text[at..];
        let end = rest.find(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'));
        let name = &rest[prefix.len()..end.unwrap_or(rest.len())];
        // inspectd_0.1.0-1_amd64.deb is none.
        if name.is_empty() {
            continue;
        }
        let known = METRICS.iter().find(|metric| match metric.kind {
            Kind::Counter | Kind::Gauge => metric.name == name,
            Kind::Histogram(_) => {
                let series = name.strip_prefix(metric.name);
                series.is_some_and(|series| ["", "_bucket", "_sum", "_count"].contains(&series))
            }
        });
        found.push((name, known.map(|metric| metric.name)));
    }
    found
}

#[test]
fn names_of_metrics_are_found_and_told_from_mistakes() {
    let text = "rate(inspectd_anomaly_score_bucket[1h]) / inspectd_camera_upp, inspectd_verdicts_total_sum";
    let expected =
        [("anomaly_score_bucket", Some("anomaly_score")), ("camera_upp", None), ("verdicts_total_sum", None)];
    assert_eq!(names(text), expected);
}

#[test]
fn every_metric_that_is_named_exists() {
    for file in [
        "monitoring/alerts.yml",
        "monitoring/alerts_test.yml",
        "monitoring/dashboard.json",
        "docs/monitoring.md",
        "README.md",
    ] {
        let text = read(file);
        let unknown: BTreeSet<&str> =
            names(&text).into_iter().filter(|(_, known)| known.is_none()).map(|(name, _)| name).collect();
        assert!(unknown.is_empty(), "{file} names metrics that do not exist: {unknown:?}");
    }
}

/// Runs a tool of Debian's package prometheus.
fn start(command: &mut Command) -> Child {
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap_or_else(|error| {
        let tool = command.get_program().display().to_string();
        panic!("{tool} cannot be run ({error}); type: scripts/setup.sh --only system")
    })
}

/// promtool's opinion: its exit code is 0, and it complains of nothing.
fn promtool(arguments: &[&str], input: Stdio) {
    let mut promtool = Command::new("promtool");
    promtool.args(arguments).current_dir(repository("monitoring")).stdin(input);
    let output = start(&mut promtool).wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "promtool {arguments:?}: {said}");
    assert!(!said.contains("FAILED"), "{said}");
}

#[test]
fn promtool_finds_the_rules_well_and_their_tests_pass() {
    promtool(&["check", "config", "prometheus.yml"], Stdio::null());
    promtool(&["check", "rules", "alerts.yml"], Stdio::null());
    promtool(&["test", "rules", "alerts_test.yml"], Stdio::null());
}

#[test]
fn every_alert_is_tested_calm_and_firing() {
    let rules = read("monitoring/alerts.yml");
    let tests = read("monitoring/alerts_test.yml");
    let alerts: Vec<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() > 10);
    for alert in alerts {
        let calm = format!("alertname: {alert}}}");
        let firing = format!("alertname: {alert}\n        exp_alerts:\n          - exp_labels:");
        assert!(tests.contains(&calm), "alerts_test.yml has no calm case of {alert}");
        assert!(tests.contains(&firing), "alerts_test.yml has no case in which {alert} fires");
    }
}

/// Ends with the test, whichever way.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Already ended, if the test ended it.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Asks until `find` finds something.
fn wait<T>(what: &str, mut find: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = find() {
            return found;
        }
        assert!(Instant::now() < until, "{what} never came");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// `inspectd serve` with one line, and where it serves.
fn daemon(folder: &Path) -> (Running, String) {
    untaught::model().save(&folder.join("part.safetensors")).unwrap();
    let config = "[daemon]\nhttp = \"127.0.0.1:0\"\nstate_dir = \"state\"\n\
         [[line]]\nname = \"cam\"\nmodel = \"part.safetensors\"\n\
         source = \"videotestsrc is-live=true ! video/x-raw,format=RGB,width=64,height=64,framerate=20/1\"\n\
         [line.outputs]\nverdicts = \"off\"\n";
    std::fs::write(folder.join("c.toml"), config).unwrap();
    let mut inspectd = daemon::inspectd(&["serve"], &folder.join("c.toml"));
    let log = std::fs::File::create(folder.join("log")).unwrap();
    let running = Running(inspectd.stdout(Stdio::null()).stderr(log).spawn().unwrap());
    let address = wait("the daemon's address", || {
        let text = std::fs::read_to_string(folder.join("state/http_address")).ok()?;
        text.ends_with('\n').then(|| text.trim().to_owned())
    });
    (running, address)
}

/// A Prometheus of our own.
struct Prometheus {
    _running: Running,
    address: String,
}

impl Prometheus {
    /// With the configuration that is shipped, but for the daemon's address and a scrape every second.
    fn start(folder: &Path, target: &str) -> Self {
        let config = read("monitoring/prometheus.yml")
            .replace("interval: 5s", "interval: 1s")
            .replace("127.0.0.1:9464", target);
        std::fs::write(folder.join("prometheus.yml"), config).unwrap();
        std::fs::copy(repository("monitoring/alerts.yml"), folder.join("alerts.yml")).unwrap();
        let mut prometheus = Command::new("prometheus");
        prometheus.arg(format!("--config.file={}", folder.join("prometheus.yml").display()));
        prometheus.arg(format!("--storage.tsdb.path={}", folder.join("data").display()));
        prometheus.arg("--web.listen-address=127.0.0.1:0");
        let mut running = Running(start(&mut prometheus));
        let mut log = BufReader::new(running.0.stderr.take().unwrap()).lines();
        let listening = log.by_ref().map_while(Result::ok).find_map(|line| {
            let (_, address) = line.split_once("msg=\"Listening on\" address=")?;
            Some(address.trim().to_owned())
        });
        // It must not block on a log that nobody reads.
        std::thread::spawn(move || log.for_each(drop));
        let address = listening.expect("prometheus says where it listens");
        wait("a Prometheus that is ready", || {
            ureq::get(format!("http://{address}/-/ready")).call().is_ok().then_some(())
        });
        Prometheus { _running: running, address }
    }

    fn ask(&self, path: &str, query: Option<&str>) -> Value {
        let mut request = ureq::get(format!("http://{}{path}", self.address))
            .config()
            .http_status_as_error(false)
            .timeout_global(Some(PATIENCE))
            .build();
        if let Some(query) = query {
            request = request.query("query", query);
        }
        let text = request.call().unwrap().body_mut().read_to_string().unwrap();
        let answer: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        assert_eq!(answer["status"], "success", "{query:?}: {answer}");
        answer["data"].clone()
    }

    /// The values that an expression has now.
    fn query(&self, expression: &str) -> Vec<f64> {
        let data = self.ask("/api/v1/query", Some(expression));
        let number = |sample: &Value| sample["value"][1].as_str().unwrap().parse().unwrap();
        data["result"].as_array().unwrap().iter().map(number).collect()
    }
}

/// Parts of expressions that say nothing on a calm day, and why.
const EMPTY_IN_CALM: &[(&str, &str)] = &[
    ("inspectd_device_", "the line computes on the CPU"),
    ("inspectd_output_up", "nothing is sent over the network"),
    ("inspectd_archive_up", "there is no archive"),
    ("absent(", "the daemon is scraped"),
    ("offset 1h", "the daemon is younger than an hour"),
];

/// With comparisons that say 0 or 1 of every series instead of leaving series out.
fn as_bool(rule: &str) -> String {
    ["==", ">=", ">"].iter().fold(rule.to_owned(), |text, comparison| {
        text.replace(&format!(" {comparison} "), &format!(" {comparison} bool "))
    })
}

#[test]
fn a_prometheus_that_scrapes_a_daemon_answers_every_expression() {
    let folder = tempfile::tempdir().unwrap();
    let (mut daemon, target) = daemon(folder.path());
    let prometheus = Prometheus::start(folder.path(), &target);
    wait("some scrapes with frames", || {
        let scrapes = prometheus.query("count_over_time((inspectd_frames_captured_total > 0)[1m:1s])");
        (scrapes.first()? >= &5.0).then_some(())
    });

    let answered = |expression: &str, of: &str| {
        let values = prometheus.query(expression);
        match EMPTY_IN_CALM.iter().find(|(part, _)| expression.contains(part)) {
            Some((_, why)) => assert!(values.is_empty(), "{of}: {expression} has data, though {why}"),
            None => assert!(values.iter().any(|value| value.is_finite()), "{of}: no data: {expression}"),
        }
    };
    let mut expressions = 0;
    for panel in dashboard::ROWS.iter().flat_map(|(_, panels)| *panels) {
        for (expression, _) in panel.queries {
            answered(&expression.replace("$__rate_interval", "20s").replace("$line", ".*"), panel.title);
            expressions += 1;
        }
    }
    let groups = prometheus.ask("/api/v1/rules", None);
    let rules = groups["groups"][0]["rules"].as_array().unwrap();
    for rule in rules {
        let (name, expression) = (rule["name"].as_str().unwrap(), rule["query"].as_str().unwrap());
        answered(&as_bool(expression), name);
        assert_eq!(prometheus.query(expression), [] as [f64; 0], "{name} would fire on a calm day");
    }
    println!("{expressions} expressions of panels and {} of rules", rules.len());

    // What Prometheus reads is clean.
    let metrics = http::get(&target, "/metrics");
    let (_, body) = metrics.split_once("\r\n\r\n").unwrap();
    let scrape = folder.path().join("scrape");
    std::fs::write(&scrape, body).unwrap();
    promtool(&["check", "metrics"], std::fs::File::open(&scrape).unwrap().into());

    // A daemon that dies has no series any more; only `up` tells of it.
    daemon.0.kill().unwrap();
    daemon.0.wait().unwrap();
    let down = rules.iter().find(|rule| rule["name"] == "InspectdDown").unwrap();
    wait("the end of the daemon", || {
        (!prometheus.query(down["query"].as_str().unwrap()).is_empty()).then_some(())
    });
    assert!(prometheus.query("inspectd_camera_up").is_empty());
}
