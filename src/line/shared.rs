//! What the verdict thread publishes about a line, and what is read from it: metrics, health, the page.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::camera::{CameraCounts, CameraView, Succession};
use super::desk::Counts;
use super::heart::Heart;
use super::trigger::Triggers;
use super::{health, ledger};
use crate::config::{LineConfig, PictureTerms};
use crate::outputs::http::{Board, Health, LineHealth, TriggerRefused};
use crate::outputs::live::Live;
use crate::outputs::{Latest, PartId};
use crate::telemetry::{FrameCounts, LineTelemetry, Telemetry};

/// Written by the verdict thread after each frame.
#[derive(Clone, Copy, Debug, Default)]
pub struct Published {
    pub counts: Counts,
    pub last_score: Option<f32>,
    pub ended: bool,
}

/// One line, as all threads see it.
pub struct LineShared {
    pub telemetry: Arc<LineTelemetry>,
    pub published: Mutex<Published>,
    pub camera: Succession,
    pub terms: Mutex<CameraTerms>,
    pub latest: Arc<Latest>,
}

/// What is expected of a line's camera.
#[derive(Clone, Copy, Debug)]
pub struct CameraTerms {
    pub slots: usize,
    pub stall_timeout: Option<Duration>,
    pub started: Instant,
    pub picture: PictureTerms,
}

impl CameraTerms {
    pub fn of(line: &LineConfig, started: Instant) -> Self {
        let (slots, stall_timeout, picture) = (line.slots, line.stall_timeout, line.camera_health);
        CameraTerms { slots, stall_timeout, started, picture }
    }
}

/// A line at one instant.
pub struct Snapshot {
    pub published: Published,
    pub camera: CameraCounts,
    pub sick: Option<String>,
}

impl LineShared {
    pub fn publish(&self) -> MutexGuard<'_, Published> {
        self.published.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub fn terms(&self) -> CameraTerms {
        *self.terms.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Its pictures are judged by other limits from now on.
    pub fn expect_pictures(&self, picture: PictureTerms) {
        self.terms.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).picture = picture;
    }

    /// Another camera follows. `ended`: the one before counts no more.
    pub fn follow(&self, camera: Arc<dyn CameraView>, ended: bool, terms: CameraTerms) {
        *self.terms.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = terms;
        self.camera.follow(camera, ended);
    }

    pub fn snapshot(&self, now: Instant) -> Snapshot {
        // The desk first: see ledger::check.
        let published = *self.publish();
        let (camera, terms) = (self.camera.counts(), self.terms());
        let sick = health::sickness(&camera, published.ended, terms.stall_timeout, terms.started, now)
            .or_else(|| health::bad_picture(&camera, published.ended, &terms.picture));
        Snapshot { published, camera, sick }
    }
}

/// All lines, as the page and the metrics show them.
pub struct Lines {
    pub lines: Vec<Arc<LineShared>>,
    pub heart: Arc<Heart>,
    pub state: Mutex<State>,
    pub telemetry: Telemetry,
    pub triggers: Triggers,
    pub live: Arc<Live>,
    /// The archive's folder, if one is kept.
    pub archive: Option<PathBuf>,
}

#[derive(Clone, Debug)]
pub struct State {
    /// `starting`, `running` or `stopping`.
    pub name: &'static str,
    pub config_hash: String,
}

impl Lines {
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Every line, and why it is sick; threads that all lines share make all of them sick.
    pub fn snapshots(&self, now: Instant) -> Vec<(&LineShared, Snapshot)> {
        let arrest = self.heart.arrest(now);
        let snapshot = |line: &'_ Arc<LineShared>| {
            let mut snapshot = line.snapshot(now);
            if arrest.is_some() && !snapshot.published.ended {
                snapshot.sick.clone_from(&arrest);
            }
            snapshot
        };
        self.lines.iter().map(|line| (line.as_ref(), snapshot(line))).collect()
    }

    /// Brings the mirrored metrics up to date.
    pub fn mirror(&self) {
        for (line, Snapshot { published, camera, sick }) in self.snapshots(Instant::now()) {
            let image = camera.image;
            let counts: FrameCounts = ledger::export(&published.counts, camera, sick.is_none());
            line.telemetry.metrics.mirror(&counts);
            if let Some(image) = image {
                line.telemetry.metrics.show_image(&image);
            }
        }
    }
}

impl Board for Lines {
    fn scrape(&self) -> String {
        self.telemetry.scrape()
    }

    fn health(&self) -> Health {
        let State { name, config_hash } = self.state().clone();
        let lines: Vec<LineHealth> = self
            .snapshots(Instant::now())
            .into_iter()
            .map(|(line, Snapshot { published, camera, sick })| {
                let counts = ledger::export(&published.counts, camera, sick.is_none());
                let [good, unsure, bad, late, unjudged] = counts.verdicts;
                LineHealth {
                    line: line.telemetry.name.clone(),
                    ok: sick.is_none(),
                    why: sick,
                    device_fault: self.telemetry.device_fault(&line.telemetry.name),
                    ended: published.ended,
                    captured: counts.captured,
                    in_flight: counts.in_flight,
                    dropped: counts.dropped.iter().map(|(_, n)| n).sum(),
                    restarts: counts.restarts.iter().map(|(_, n)| n).sum(),
                    good,
                    unsure,
                    bad,
                    late,
                    unjudged,
                    last_score: published.last_score,
                    has_heatmap: line.latest.get().is_some(),
                }
            })
            .collect();
        let ok = name == "running" && lines.iter().all(|line| line.ok);
        let archive_fault = self.telemetry.archive_fault();
        Health { ok, state: name, version: env!("CARGO_PKG_VERSION"), config_hash, archive_fault, lines }
    }

    fn trigger(&self, line: &str, part: Option<PartId>) -> Result<PartId, TriggerRefused> {
        self.triggers.fire(line, part)
    }

    fn heatmap(&self, line: &str) -> Option<std::path::PathBuf> {
        self.lines.iter().find(|l| l.telemetry.name == line)?.latest.get()
    }

    fn live(&self) -> &Live {
        &self.live
    }

    fn archive(&self) -> Option<PathBuf> {
        self.archive.clone()
    }
}
