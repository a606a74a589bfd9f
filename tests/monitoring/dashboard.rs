//! The Grafana dashboard `monitoring/dashboard.json`, written from this table of panels.

use serde_json::{Value, json};

/// How a panel shows its series.
#[derive(Clone, Copy, PartialEq)]
pub enum Look {
    /// A number each.
    Stat,
    /// Over time.
    Lines,
    /// Over time, on top of each other.
    Stack,
    /// A histogram's buckets over time.
    Heat,
    /// The labels of series whose value says nothing.
    Table,
}

pub struct Panel {
    pub title: &'static str,
    /// What an operator makes of it.
    pub about: &'static str,
    look: Look,
    /// Grafana's name of the unit.
    unit: &'static str,
    /// Expressions, with the legend of each.
    pub queries: &'static [(&'static str, &'static str)],
}

/// Panels under a heading. `$line` is what was picked at the top of the page.
pub const ROWS: &[(&str, &[Panel])] = &[
    (
        "Now",
        &[
            Panel {
                title: "Daemons",
                about: "1: answers. A daemon that died has no other series: only this one shows it.",
                look: Look::Stat,
                unit: "none",
                queries: &[(r#"up{job="inspectd"}"#, "{{instance}}")],
            },
            Panel {
                title: "Lines that make progress",
                about: "0: no frame for longer than stall_timeout_ms, or a thread stands still; /healthz says which.",
                look: Look::Stat,
                unit: "none",
                queries: &[(r#"inspectd_line_healthy{line=~"$line"}"#, "{{line}}")],
            },
            Panel {
                title: "Cameras",
                about: "1 while the camera gives frames.",
                look: Look::Stat,
                unit: "none",
                queries: &[(r#"inspectd_camera_up{line=~"$line"}"#, "{{line}}")],
            },
        ],
    ),
    (
        "Parts",
        &[
            Panel {
                title: "Verdicts per second",
                about: "",
                look: Look::Stack,
                unit: "short",
                queries: &[(
                    r#"sum by (line, verdict) (rate(inspectd_verdicts_total{line=~"$line"}[$__rate_interval]))"#,
                    "{{line}} {{verdict}}",
                )],
            },
            Panel {
                title: "Share of parts that are not good",
                about: "A step in bad and unsure: another batch, another light, a dirty lens. late and unjudged should be 0.",
                look: Look::Lines,
                unit: "percentunit",
                queries: &[(
                    r#"sum by (line, verdict) (increase(inspectd_verdicts_total{line=~"$line", verdict!="good"}[10m])) / ignoring (verdict) group_left sum by (line) (increase(inspectd_verdicts_total{line=~"$line"}[10m]))"#,
                    "{{line}} {{verdict}}",
                )],
            },
            Panel {
                title: "Scores",
                about: "10 %, 50 % and 90 % of the scores lie below. InspectdScoreDrift watches the median.",
                look: Look::Lines,
                unit: "short",
                queries: &[
                    (
                        r#"histogram_quantile(0.1, sum by (line, le) (rate(inspectd_anomaly_score_bucket{line=~"$line"}[10m])))"#,
                        "{{line}} 10 %",
                    ),
                    (
                        r#"histogram_quantile(0.5, sum by (line, le) (rate(inspectd_anomaly_score_bucket{line=~"$line"}[10m])))"#,
                        "{{line}} median",
                    ),
                    (
                        r#"histogram_quantile(0.9, sum by (line, le) (rate(inspectd_anomaly_score_bucket{line=~"$line"}[10m])))"#,
                        "{{line}} 90 %",
                    ),
                ],
            },
            Panel {
                title: "Distribution of scores",
                about: "",
                look: Look::Heat,
                unit: "short",
                queries: &[(
                    r#"sum by (le) (increase(inspectd_anomaly_score_bucket{line=~"$line"}[$__rate_interval]))"#,
                    "{{le}}",
                )],
            },
        ],
    ),
    (
        "Time",
        &[
            Panel {
                title: "Arrival to verdict",
                about: "The share that was judged within deadline_ms is what counts; 99 % should stay far below it.",
                look: Look::Lines,
                unit: "s",
                queries: &[
                    (
                        r#"histogram_quantile(0.5, sum by (line, le) (rate(inspectd_frame_latency_seconds_bucket{line=~"$line"}[$__rate_interval])))"#,
                        "{{line}} median",
                    ),
                    (
                        r#"histogram_quantile(0.99, sum by (line, le) (rate(inspectd_frame_latency_seconds_bucket{line=~"$line"}[$__rate_interval])))"#,
                        "{{line}} 99 %",
                    ),
                ],
            },
            Panel {
                title: "Where the time goes",
                about: "Mean per stage. queue grows: too many lines for the PC; judge grows: something else runs on it.",
                look: Look::Stack,
                unit: "s",
                queries: &[(
                    r#"sum by (line, stage) (rate(inspectd_stage_duration_seconds_sum{line=~"$line"}[$__rate_interval])) / sum by (line, stage) (rate(inspectd_stage_duration_seconds_count{line=~"$line"}[$__rate_interval]))"#,
                    "{{line}} {{stage}}",
                )],
            },
            Panel {
                title: "Late, failed, damaged, discarded",
                about: "Per second: deadlines missed, frames that the model could not judge, frames that came damaged, judgements that came after the verdict late.",
                look: Look::Lines,
                unit: "short",
                queries: &[
                    (
                        r#"rate(inspectd_deadline_misses_total{line=~"$line"}[$__rate_interval])"#,
                        "{{line}} late",
                    ),
                    (
                        r#"rate(inspectd_judge_failures_total{line=~"$line"}[$__rate_interval])"#,
                        "{{line}} failed",
                    ),
                    (
                        r#"rate(inspectd_frames_damaged_total{line=~"$line"}[$__rate_interval])"#,
                        "{{line}} damaged",
                    ),
                    (
                        r#"rate(inspectd_judgements_discarded_total{line=~"$line"}[$__rate_interval])"#,
                        "{{line}} discarded",
                    ),
                ],
            },
            Panel {
                title: "Waiting",
                about: "Frames in flight and in queues. A queue that stays full drops.",
                look: Look::Lines,
                unit: "short",
                queries: &[
                    (r#"inspectd_frames_in_flight{line=~"$line"}"#, "{{line}} in flight"),
                    (r#"inspectd_queue_depth{line=~"$line|"}"#, "{{line}} {{queue}}"),
                ],
            },
        ],
    ),
    (
        "Cameras and ledger",
        &[
            Panel {
                title: "Frames per second",
                about: "",
                look: Look::Lines,
                unit: "short",
                queries: &[(
                    r#"rate(inspectd_frames_captured_total{line=~"$line"}[$__rate_interval])"#,
                    "{{line}}",
                )],
            },
            Panel {
                title: "Frames dropped per second",
                about: "Should be 0, but for shutdown.",
                look: Look::Stack,
                unit: "short",
                queries: &[(
                    r#"rate(inspectd_frames_dropped_total{line=~"$line"}[$__rate_interval])"#,
                    "{{line}} {{reason}}",
                )],
            },
            Panel {
                title: "Cameras started anew",
                about: "Within the last hour, by what was wrong.",
                look: Look::Lines,
                unit: "short",
                queries: &[(
                    r#"increase(inspectd_camera_restarts_total{line=~"$line"}[1h])"#,
                    "{{line}} {{reason}}",
                )],
            },
            Panel {
                title: "Frames that the ledger misses",
                about: "captured - verdicts - dropped - in flight, and checks that did not balance. Both are 0, or inspectd has a fault.",
                look: Look::Lines,
                unit: "short",
                queries: &[
                    (
                        r#"sum by (instance, line) (inspectd_frames_captured_total{line=~"$line"}) - sum by (instance, line) (inspectd_verdicts_total) - sum by (instance, line) (inspectd_frames_dropped_total) - sum by (instance, line) (inspectd_frames_in_flight)"#,
                        "{{line}} missing",
                    ),
                    (r#"inspectd_ledger_unbalanced_total{line=~"$line"}"#, "{{line}} checks"),
                ],
            },
            Panel {
                title: "Frames that had to be copied",
                about: "Share of frames that the source did not write into our memory itself. Costs time, nothing else.",
                look: Look::Lines,
                unit: "percentunit",
                queries: &[(
                    r#"rate(inspectd_frames_copied_total{line=~"$line"}[$__rate_interval]) / (rate(inspectd_frames_copied_total{line=~"$line"}[$__rate_interval]) + rate(inspectd_frames_zero_copy_total{line=~"$line"}[$__rate_interval]))"#,
                    "{{line}}",
                )],
            },
        ],
    ),
    (
        "Outputs, devices, configuration",
        &[
            Panel {
                title: "Outputs lost",
                about: "Within the last 10 minutes, by output and reason.",
                look: Look::Lines,
                unit: "short",
                queries: &[(
                    r#"increase(inspectd_outputs_failed_total{line=~"$line"}[10m])"#,
                    "{{line}} {{stage}} {{reason}}",
                )],
            },
            Panel {
                title: "GPUs",
                about: "0 while the CPU stands in. Empty where the configuration names no GPU.",
                look: Look::Lines,
                unit: "short",
                queries: &[
                    (r#"inspectd_device_up{line=~"$line"}"#, "{{line}} {{device}}"),
                    (
                        r#"increase(inspectd_device_failures_total{line=~"$line"}[1h])"#,
                        "{{line}} {{device}} failures",
                    ),
                ],
            },
            Panel {
                title: "Reloads",
                about: "Within the last hour, by result.",
                look: Look::Lines,
                unit: "short",
                queries: &[(r#"increase(inspectd_config_reloads_total[1h])"#, "{{instance}} {{result}}")],
            },
            Panel {
                title: "In force",
                about: "Program, configuration and models.",
                look: Look::Table,
                unit: "none",
                queries: &[
                    ("inspectd_build_info", ""),
                    ("inspectd_config_hash_info", ""),
                    (r#"inspectd_model_info{line=~"$line"}"#, ""),
                ],
            },
        ],
    ),
    (
        "Process",
        &[
            Panel {
                title: "Processor cores in use",
                about: "",
                look: Look::Lines,
                unit: "short",
                queries: &[(
                    r#"rate(process_cpu_seconds_total{job="inspectd"}[$__rate_interval])"#,
                    "{{instance}}",
                )],
            },
            Panel {
                title: "Resident memory",
                about: "Flat once every line has had its first frames.",
                look: Look::Lines,
                unit: "bytes",
                queries: &[(r#"process_resident_memory_bytes{job="inspectd"}"#, "{{instance}}")],
            },
            Panel {
                title: "Threads and open files",
                about: "Flat.",
                look: Look::Lines,
                unit: "short",
                queries: &[
                    (r#"process_threads{job="inspectd"}"#, "{{instance}} threads"),
                    (r#"process_open_fds{job="inspectd"}"#, "{{instance}} files"),
                ],
            },
        ],
    ),
];

/// The file's text.
pub fn json() -> String {
    let mut panels = Vec::new();
    let mut y = 0;
    for (heading, row) in ROWS {
        panels.push(json!({
            "type": "row", "title": heading, "id": panels.len() + 1, "collapsed": false, "panels": [],
            "gridPos": {"x": 0, "y": y, "w": 24, "h": 1},
        }));
        y += 1;
        let height = if row.iter().all(|panel| panel.look == Look::Stat) { 4 } else { 8 };
        for (i, panel) in row.iter().enumerate() {
            let place = json!({"x": i % 3 * 8, "y": y + i / 3 * height, "w": 8, "h": height});
            panels.push(panel.json(panels.len() + 1, place));
        }
        y += row.len().div_ceil(3) * height;
    }
    let dashboard = json!({
        "title": "inspectd",
        "uid": "inspectd",
        "description": "Written by UPDATE_MONITORING=1 cargo test --test monitoring; see docs/monitoring.md.",
        "tags": ["inspectd"],
        "schemaVersion": 38,
        "version": 1,
        "editable": true,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [
            {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
            {
                "name": "line", "label": "Line", "type": "query", "datasource": source(),
                "query": {"query": LINES, "refId": "lines"},
                "refresh": 2, "sort": 1, "multi": true, "includeAll": true, "allValue": ".*",
                "current": {"text": "All", "value": "$__all"},
            },
        ]},
        "panels": panels,
    });
    format!("{dashboard:#}\n")
}

/// What fills the list of lines.
const LINES: &str = "label_values(inspectd_camera_up, line)";

fn source() -> Value {
    json!({"type": "prometheus", "uid": "${datasource}"})
}

impl Panel {
    fn json(&self, id: usize, place: Value) -> Value {
        let once = matches!(self.look, Look::Stat | Look::Table);
        let format = match self.look {
            Look::Heat => "heatmap",
            Look::Table => "table",
            _ => "time_series",
        };
        let targets: Vec<Value> = (self.queries.iter().zip('A'..))
            .map(|((expr, legend), id)| {
                json!({
                    "refId": id.to_string(), "datasource": source(), "expr": expr, "legendFormat": legend,
                    "format": format, "instant": once, "range": !once,
                })
            })
            .collect();
        let kind = match self.look {
            Look::Stat => "stat",
            Look::Lines | Look::Stack => "timeseries",
            Look::Heat => "heatmap",
            Look::Table => "table",
        };
        let mut defaults = json!({"unit": self.unit});
        let mut options = json!({});
        match self.look {
            Look::Stat => {
                // Every such panel shows 1 for well and 0 for ill.
                defaults["thresholds"] = json!({"mode": "absolute", "steps": [
                    {"color": "red", "value": null}, {"color": "green", "value": 1},
                ]});
                options = json!({"colorMode": "background", "textMode": "value_and_name"});
            }
            Look::Stack => {
                defaults["custom"] = json!({"stacking": {"mode": "normal"}, "fillOpacity": 40});
            }
            Look::Heat => options = json!({"calculate": false, "color": {"scheme": "Oranges"}}),
            Look::Lines | Look::Table => {}
        }
        json!({
            "type": kind, "title": self.title, "description": self.about, "id": id, "gridPos": place,
            "datasource": source(), "targets": targets, "options": options,
            "fieldConfig": {"defaults": defaults, "overrides": []},
        })
    }
}
