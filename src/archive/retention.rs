//! What has to go: by age, and by bytes. In steps of milliseconds, oldest first, so that no verdict waits for it.
//!
//! Parts that a person has reviewed are the next lesson: age does not remove them, and when bytes are short they
//! are the last to go. On a full disk the archive is a ring: the oldest pictures make room, a little each second.

use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rusqlite::params;

use super::store::{Store, StoreError};

/// Rows that a step removes.
const ROWS: i64 = 500;
/// Pictures that a step removes.
const IMAGES: i64 = 32;
/// Bytes of pictures that are given up for each second of a full disk.
const RING_BYTES: u64 = 16 << 20;
/// Free pages in the database from which on they are given back.
const FREE_PAGES: i64 = 1000;

/// What may stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub age: Duration,
    /// Pictures and database together.
    pub bytes: u64,
}

/// What a step did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Step {
    pub rows: usize,
    pub images: usize,
    /// There may be more to do.
    pub more: bool,
}

impl Store {
    /// One step.
    pub(super) fn retain(&mut self, limits: &Limits, now: Timestamp) -> Result<Step, StoreError> {
        let age = SignedDuration::try_from(limits.age).unwrap_or(SignedDuration::MAX);
        let oldest = now.checked_sub(age).unwrap_or(Timestamp::MIN).as_millisecond();
        let step = self.remove_rows("review IS NULL AND captured_at < ?1", oldest)?;
        if step.rows > 0 {
            return Ok(step);
        }
        if self.image_bytes + self.database_bytes()? > limits.bytes {
            let step = self.remove_images(u64::MAX, true)?;
            if step.images > 0 {
                return Ok(step);
            }
            let step = self.remove_rows("review IS NULL AND captured_at < ?1", i64::MAX)?;
            if step.rows > 0 {
                return Ok(step);
            }
            // Nothing but reviewed rows without pictures is left: those are kept.
        }
        let free: i64 = self.db.pragma_query_value(None, "freelist_count", |row| row.get(0))?;
        if free > FREE_PAGES {
            self.db.execute_batch("PRAGMA incremental_vacuum(256)")?;
            let left: i64 = self.db.pragma_query_value(None, "freelist_count", |row| row.get(0))?;
            return Ok(Step { more: left < free, ..Step::default() });
        }
        Ok(Step::default())
    }

    /// Gives up the oldest pictures that nobody has reviewed, for a disk that has no room.
    pub(super) fn make_room(&mut self) -> Result<Step, StoreError> {
        self.remove_images(RING_BYTES, false)
    }

    fn remove_rows(&mut self, which: &str, time: i64) -> Result<Step, StoreError> {
        let sql = format!(
            "SELECT v.id, v.captured_at, l.name, v.sequence, v.image FROM verdicts v JOIN lines l ON l.id = v.line \
             WHERE {which} ORDER BY v.captured_at LIMIT {ROWS}"
        );
        let found = self.select(&sql, params![time])?;
        let mut step = Step { rows: found.len(), more: !found.is_empty(), ..Step::default() };
        let mut freed = 0;
        for part in found.iter().filter(|part| part.bytes.is_some()) {
            part.remove_files(&self.folder);
            step.images += 1;
            freed += part.bytes.unwrap_or(0);
        }
        let transaction = self.db.transaction()?;
        {
            let mut delete = transaction.prepare_cached("DELETE FROM verdicts WHERE id = ?1")?;
            for part in &found {
                delete.execute([part.id])?;
            }
        }
        transaction.commit()?;
        self.image_bytes = self.image_bytes.saturating_sub(freed);
        Ok(step)
    }

    /// The oldest pictures, up to so many bytes in one step.
    fn remove_images(&mut self, bytes: u64, reviewed_too: bool) -> Result<Step, StoreError> {
        let select = |review: &str| {
            format!(
                "SELECT v.id, v.captured_at, l.name, v.sequence, v.image FROM verdicts v \
                 JOIN lines l ON l.id = v.line WHERE v.image > 0 AND v.image IS NOT NULL AND v.review {review} \
                 ORDER BY v.captured_at LIMIT {IMAGES}"
            )
        };
        let mut found = self.select(&select("IS NULL"), params![])?;
        if found.is_empty() && reviewed_too {
            found = self.select(&select("IS NOT NULL"), params![])?;
        }
        let mut freed = 0;
        let mut gone = Vec::new();
        for part in found {
            if freed >= bytes {
                break;
            }
            part.remove_files(&self.folder);
            freed += part.bytes.unwrap_or(0);
            gone.push(part.id);
        }
        self.image_bytes = self.image_bytes.saturating_sub(freed);
        // On a full disk this may fail; the rows then name pictures that are gone, until the next time.
        let transaction = self.db.transaction()?;
        {
            let mut update = transaction.prepare_cached("UPDATE verdicts SET image = NULL WHERE id = ?1")?;
            for id in &gone {
                update.execute([id])?;
            }
        }
        transaction.commit()?;
        Ok(Step { rows: 0, images: gone.len(), more: !gone.is_empty() })
    }

    fn select(&self, sql: &str, values: impl rusqlite::Params) -> Result<Vec<Part>, StoreError> {
        let mut query = self.db.prepare_cached(sql)?;
        let parts = query.query_map(values, |row| {
            Ok(Part {
                id: row.get(0)?,
                captured_at: Timestamp::from_millisecond(row.get(1)?).unwrap_or_default(),
                line: row.get(2)?,
                sequence: row.get::<_, i64>(3)? as u64,
                bytes: row.get::<_, Option<i64>>(4)?.map(|bytes| bytes.max(0) as u64),
            })
        })?;
        Ok(parts.collect::<Result<_, _>>()?)
    }
}

struct Part {
    id: i64,
    captured_at: Timestamp,
    line: String,
    sequence: u64,
    bytes: Option<u64>,
}

impl Part {
    fn remove_files(&self, folder: &Path) {
        let paths = super::image_paths(folder, &self.line, self.captured_at, self.sequence);
        for path in &paths {
            remove(path);
        }
        // Fails while the day has other pictures.
        let _ = paths[0].parent().map(std::fs::remove_dir);
    }
}

fn remove(path: &PathBuf) {
    // Somebody else may have removed it; what cannot be removed is not tried for ever.
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "An old picture of the archive cannot be removed.");
    }
}
