//! What is asked of the archive: a part, a page of parts, the last scores of a line, reviews.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use rusqlite::types::Value;
use rusqlite::{OptionalExtension, params, params_from_iter};
use serde::Serialize;

use super::store::{Store, StoreError};
use crate::imaging::Roi;
use crate::model::{Thresholds, Verdict};
use crate::telemetry::{VERDICTS, verdict_label, verdict_of};

/// What a person says of a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Review {
    /// The verdict was right.
    Confirm,
    /// The part was good.
    FalseAlarm,
    /// The person cannot say.
    Unsure,
}

impl Review {
    pub const ALL: [Review; 3] = [Review::Confirm, Review::FalseAlarm, Review::Unsure];

    pub fn label(self) -> &'static str {
        match self {
            Review::Confirm => "confirm",
            Review::FalseAlarm => "false_alarm",
            Review::Unsure => "unsure",
        }
    }

    pub fn from_label(label: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|review| review.label() == label)
    }
}

/// How a part is asked for: its number in the archive, or its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PartKey {
    Number(i64),
    /// As in `cam1_20261124T093045.123Z_00000007`: what names of heatmaps begin with.
    Name {
        line: String,
        millisecond: i64,
        sequence: u64,
    },
}

/// Text that names no part.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is neither the number of a part nor a name such as cam1_20261124T093045.123Z_00000007")]
pub struct NoPartKey(String);

impl FromStr for PartKey {
    type Err = NoPartKey;

    /// Takes the name of a heatmap's file too.
    fn from_str(text: &str) -> Result<Self, NoPartKey> {
        if let Ok(number) = text.parse() {
            return Ok(PartKey::Number(number));
        }
        let file = text.rsplit('/').next().unwrap_or(text);
        let bare = file.strip_suffix(".png").unwrap_or(file);
        let mut bare = bare;
        for suffix in VERDICTS.iter().map(|(_, label)| *label).chain(["heatmap"]) {
            bare = bare.strip_suffix(suffix).and_then(|rest| rest.strip_suffix('_')).unwrap_or(bare);
        }
        let parse = || {
            let (rest, sequence) = bare.rsplit_once('_')?;
            let (line, time) = rest.rsplit_once('_')?;
            let time = DateTime::strptime("%Y%m%dT%H%M%S%.fZ", time).ok()?;
            let at = TimeZone::UTC.to_timestamp(time).ok()?;
            let sequence = sequence.parse().ok()?;
            (!line.is_empty()).then(|| PartKey::Name {
                line: line.to_owned(),
                millisecond: at.as_millisecond(),
                sequence,
            })
        };
        parse().ok_or_else(|| NoPartKey(text.to_owned()))
    }
}

impl fmt::Display for PartKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PartKey::Number(number) => write!(f, "{number}"),
            PartKey::Name { line, millisecond, sequence } => {
                let at = Timestamp::from_millisecond(*millisecond).unwrap_or_default();
                f.write_str(&super::part_name(line, at, *sequence))
            }
        }
    }
}

/// A part in the archive.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Never given again.
    pub id: i64,
    pub line: String,
    pub sequence: u64,
    pub part_id: Option<String>,
    pub captured_at: Timestamp,
    pub verdict: Verdict,
    pub reason: Option<String>,
    /// `None` where there was none, or it was not a number.
    pub score: Option<f32>,
    pub thresholds: Thresholds,
    pub roi: Option<Roi>,
    pub latency: Duration,
    pub frame_hash: Option<String>,
    pub model_hash: String,
    pub config_hash: String,
    /// The picture as the camera gave it. There may be one with the heatmap: [`Row::heatmap`].
    pub image: Option<PathBuf>,
    pub review: Option<Review>,
    pub reviewed_at: Option<Timestamp>,
    pub reviewer: Option<String>,
    heatmap: PathBuf,
}

impl Row {
    pub fn name(&self) -> String {
        super::part_name(&self.line, self.captured_at, self.sequence)
    }

    /// The picture with its heatmap, if there is one.
    pub fn heatmap(&self) -> Option<PathBuf> {
        (self.image.is_some() && self.heatmap.exists()).then(|| self.heatmap.clone())
    }

    /// Whether the part itself is known to be good, by a person.
    pub fn is_known_good(&self) -> bool {
        match self.verdict {
            Verdict::Good => self.review == Some(Review::Confirm),
            _ => self.review == Some(Review::FalseAlarm),
        }
    }

    /// Whether the part itself is known to be bad, by a person.
    pub fn is_known_bad(&self) -> bool {
        matches!(self.verdict, Verdict::Unsure | Verdict::Bad) && self.review == Some(Review::Confirm)
    }
}

/// Which parts are asked for; empty lists are all.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub lines: Vec<String>,
    pub verdicts: Vec<Verdict>,
    /// What the plant calls the part.
    pub part_id: Option<String>,
    pub since: Option<Timestamp>,
    pub until: Option<Timestamp>,
    /// Only those that a person has looked at (true), or that nobody has (false).
    pub reviewed: Option<bool>,
    pub with_image: bool,
    /// Only parts before this one: the next page after the one that ended with it.
    pub before: Option<(Timestamp, i64)>,
}

const COLUMNS: &str = "SELECT v.id, l.name, v.sequence, v.part_id, v.captured_at, v.verdict, v.reason, v.score, c.unsure, \
                       c.bad, c.roi, v.latency_us, v.frame_hash, c.model_hash, c.config_hash, v.image, v.review, \
                       v.reviewed_at, v.reviewer FROM verdicts v";
const JOINED: &str = "JOIN lines l ON l.id = v.line JOIN contexts c ON c.id = v.context";

type Fetched = Result<Row, StoreError>;

impl Store {
    /// The part, if the archive has it.
    pub fn find(&self, key: &PartKey) -> Result<Option<Row>, StoreError> {
        let fetched = match key {
            PartKey::Number(id) => {
                let sql = format!("{COLUMNS} {JOINED} WHERE v.id = ?1");
                self.db.query_row(&sql, [id], |row| Ok(self.row(row))).optional()?
            }
            PartKey::Name { line, millisecond, sequence } => {
                let sql = format!(
                    "{COLUMNS} {JOINED} WHERE v.captured_at = ?1 AND v.sequence = ?2 AND l.name = ?3 \
                     ORDER BY v.id DESC LIMIT 1"
                );
                let values = params![millisecond, *sequence as i64, line];
                self.db.query_row(&sql, values, |row| Ok(self.row(row))).optional()?
            }
        };
        fetched.transpose()
    }

    /// Names of all lines that the archive knows.
    pub fn lines(&self) -> Result<Vec<String>, StoreError> {
        let mut query = self.db.prepare_cached("SELECT name FROM lines ORDER BY name")?;
        let names = query.query_map([], |row| row.get(0))?;
        Ok(names.collect::<Result<_, _>>()?)
    }

    /// Parts of `filter`, newest first, at most `limit`.
    pub fn list(&self, filter: &Filter, limit: usize) -> Result<Vec<Row>, StoreError> {
        let lines = if filter.lines.is_empty() { self.lines()? } else { filter.lines.clone() };
        let verdicts = match filter.verdicts.as_slice() {
            [] => Verdict::ALL.to_vec(),
            some => some.to_vec(),
        };
        let mut rows = Vec::new();
        // One run along an index for each line and verdict: rare verdicts are found among millions of others.
        for line in &lines {
            for verdict in &verdicts {
                self.list_one(filter, line, *verdict, limit, &mut rows)?;
            }
        }
        rows.sort_by_key(|row| std::cmp::Reverse((row.captured_at, row.id)));
        rows.truncate(limit);
        Ok(rows)
    }

    fn list_one(
        &self,
        filter: &Filter,
        line: &str,
        verdict: Verdict,
        limit: usize,
        rows: &mut Vec<Row>,
    ) -> Result<(), StoreError> {
        // SQLite would take the index of all, among whose millions the few that are asked for are far between.
        let index = match filter {
            Filter { part_id: Some(_), .. } => "verdicts_by_part",
            Filter { reviewed: Some(true), .. } => "reviews_by_line",
            Filter { with_image: true, .. } => "images_by_line",
            _ => "verdicts_by_line",
        };
        let mut sql = format!(
            "{COLUMNS} INDEXED BY {index} {JOINED} \
             WHERE v.line = (SELECT id FROM lines WHERE name = ?) AND v.verdict = ?"
        );
        let label = verdict_label(verdict);
        let mut values: Vec<Value> = vec![line.to_owned().into(), label.to_owned().into()];
        if let Some(part_id) = &filter.part_id {
            sql.push_str(" AND v.part_id = ?");
            values.push(part_id.clone().into());
        }
        let mut time = |condition: &str, at: Option<Timestamp>| {
            if let Some(at) = at {
                sql.push_str(condition);
                values.push(at.as_millisecond().into());
            }
        };
        time(" AND v.captured_at >= ?", filter.since);
        time(" AND v.captured_at < ?", filter.until);
        if let Some((at, id)) = filter.before {
            sql.push_str(" AND (v.captured_at, v.id) < (?, ?)");
            values.extend([at.as_millisecond().into(), id.into()]);
        }
        match filter.reviewed {
            Some(true) => sql.push_str(" AND v.review IS NOT NULL"),
            Some(false) => sql.push_str(" AND v.review IS NULL"),
            None => {}
        }
        if filter.with_image {
            sql.push_str(" AND v.image > 0");
        }
        sql.push_str(" ORDER BY v.captured_at DESC, v.id DESC LIMIT ?");
        values.push(i64::try_from(limit).unwrap_or(i64::MAX).into());
        let mut query = self.db.prepare_cached(&sql)?;
        let found = query.query_map(params_from_iter(values), |row| Ok(self.row(row)))?;
        for row in found {
            rows.push(row??);
        }
        Ok(())
    }

    /// The last `n` scores of a line, newest first: what a threshold would have made of them.
    pub fn scores(&self, line: &str, n: usize) -> Result<Vec<(Timestamp, f32)>, StoreError> {
        let limit = i64::try_from(n).unwrap_or(i64::MAX);
        let mut query = self.db.prepare_cached(
            "SELECT captured_at, score FROM verdicts \
             WHERE line = (SELECT id FROM lines WHERE name = ?1) AND verdict = ?2 AND score IS NOT NULL \
             ORDER BY captured_at DESC LIMIT ?3",
        )?;
        let mut scores: Vec<(i64, f64)> = Vec::new();
        for verdict in [Verdict::Good, Verdict::Unsure, Verdict::Bad] {
            let label = verdict_label(verdict);
            let found = query.query_map(params![line, label, limit], |row| Ok((row.get(0)?, row.get(1)?)))?;
            for score in found {
                scores.push(score?);
            }
        }
        scores.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
        scores.truncate(n);
        let of =
            |(at, score): (i64, f64)| (Timestamp::from_millisecond(at).unwrap_or_default(), score as f32);
        Ok(scores.into_iter().map(of).collect())
    }

    /// Keeps what `who` says of a part; `None` takes it back. False if the archive has no such part.
    pub fn set_review(&self, id: i64, review: Option<Review>, who: &str) -> Result<bool, StoreError> {
        let at = review.map(|_| Timestamp::now().as_millisecond());
        let who = review.map(|_| who);
        let changed = self.db.execute(
            "UPDATE verdicts SET review = ?1, reviewed_at = ?2, reviewer = ?3 WHERE id = ?4",
            params![review.map(Review::label), at, who, id],
        )?;
        Ok(changed > 0)
    }

    fn row(&self, row: &rusqlite::Row<'_>) -> Fetched {
        let line: String = row.get(1)?;
        let sequence = row.get::<_, i64>(2)? as u64;
        let captured_at = Timestamp::from_millisecond(row.get(4)?).unwrap_or_default();
        let [image, heatmap] = super::image_paths(&self.folder, &line, captured_at, sequence);
        let unknown = |what, text: String| StoreError::Content { what, text };
        let verdict: String = row.get(5)?;
        let verdict = verdict_of(&verdict).ok_or_else(|| unknown("the verdict", verdict))?;
        let review = match row.get::<_, Option<String>>(16)? {
            None => None,
            Some(label) => Some(Review::from_label(&label).ok_or_else(|| unknown("the review", label))?),
        };
        let roi = match row.get::<_, Option<String>>(10)? {
            None => None,
            Some(text) => Some(roi(&text).ok_or_else(|| unknown("the region", text))?),
        };
        let latency = u64::try_from(row.get::<_, i64>(11)?).unwrap_or(0);
        Ok(Row {
            id: row.get(0)?,
            line,
            sequence,
            part_id: row.get(3)?,
            captured_at,
            verdict,
            reason: row.get(6)?,
            score: row.get::<_, Option<f64>>(7)?.map(|score| score as f32),
            thresholds: Thresholds {
                unsure: row.get::<_, f64>(8)? as f32,
                bad: row.get::<_, f64>(9)? as f32,
            },
            roi,
            latency: Duration::from_micros(latency),
            frame_hash: row.get(12)?,
            model_hash: row.get(13)?,
            config_hash: row.get(14)?,
            image: row.get::<_, Option<i64>>(15)?.filter(|bytes| *bytes > 0).map(|_| image),
            review,
            reviewed_at: row.get::<_, Option<i64>>(17)?.and_then(|at| Timestamp::from_millisecond(at).ok()),
            reviewer: row.get(18)?,
            heatmap,
        })
    }
}

fn roi(text: &str) -> Option<Roi> {
    let numbers: Vec<usize> = text.split(',').map(|n| n.parse().ok()).collect::<Option<_>>()?;
    let [x, y, width, height] = numbers.try_into().ok()?;
    Some(Roi { x, y, width, height })
}
