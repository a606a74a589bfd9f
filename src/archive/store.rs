//! The database: opening it, and what the archive's thread writes. Reading is in `query`.
//!
//! `synchronous = NORMAL` in WAL mode: a commit is in the page cache of the kernel when it returns, so it outlives
//! this process, however that ends. Only a power cut may take the last commits before a checkpoint with it (the
//! database stays whole); `power_safe` waits for the disk at each commit (FULL).

use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, params};

use super::files::{immutable_uri, inode, remove_half_written, set_aside};
use super::schema::{APPLICATION, MIGRATIONS, check};
use super::{DATABASE, Entry, IMAGES};
use crate::imaging::Roi;
use crate::outputs::{PartId, Record, Rules};
use crate::telemetry::verdict_label;

/// How long a write waits for somebody else's.
const BUSY: Duration = Duration::from_secs(1);

/// Commits, of some 6 pages each, after which the WAL is written back.
const CHECKPOINT: u32 = 250;

/// What is wrong with the archive's database.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the archive {path} cannot be opened: {source}", path = path.display())]
    Open { path: PathBuf, source: rusqlite::Error },
    #[error("the folder {path} of the archive cannot be made: {source}", path = path.display())]
    Folder { path: PathBuf, source: std::io::Error },
    #[error("{path} is a database, but not an archive of inspectd", path = path.display())]
    Foreign { path: PathBuf },
    #[error("{path} was written by a newer inspectd (its schema is {version}, this one knows {known})", path = path.display())]
    Newer { path: PathBuf, version: usize, known: usize },
    #[error("{path} is an archive of schema {version} that no daemon has taken to {known} yet", path = path.display())]
    Older { path: PathBuf, version: usize, known: usize },
    #[error("there is no archive in {path}", path = path.display())]
    Missing { path: PathBuf },
    #[error("the damaged archive {path} cannot be moved aside: {source}", path = path.display())]
    Aside { path: PathBuf, source: std::io::Error },
    #[error("the archive cannot be read or written: {0}")]
    Sql(#[from] rusqlite::Error),
    #[error("the archive holds {what} {text:?}, which this version does not know")]
    Content { what: &'static str, text: String },
}

impl StoreError {
    fn code(&self) -> Option<ErrorCode> {
        match self {
            StoreError::Open { source, .. } | StoreError::Sql(source) => source.sqlite_error_code(),
            _ => None,
        }
    }

    /// The file is no database any more.
    pub fn is_corrupt(&self) -> bool {
        matches!(self.code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
    }

    /// Files cannot be made where it lies.
    fn is_denied(&self) -> bool {
        matches!(self.code(), Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly | ErrorCode::PermissionDenied))
    }

    /// There is no room on the disk.
    pub fn is_full(&self) -> bool {
        self.code() == Some(ErrorCode::DiskFull)
    }
}

/// What many verdicts have in common.
#[derive(Clone, Debug, PartialEq)]
struct Context {
    line: String,
    model_hash: String,
    config_hash: String,
    unsure: f32,
    bad: f32,
    roi: Option<Roi>,
}

impl Context {
    fn is_of(&self, rules: &Rules) -> bool {
        self.line == rules.line.as_str()
            && self.model_hash == rules.model_hash
            && self.config_hash == rules.config_hash
            && (self.unsure, self.bad) == (rules.thresholds.unsure, rules.thresholds.bad)
            && self.roi == rules.roi
    }
}

pub(super) fn roi_text(roi: Roi) -> String {
    format!("{},{},{},{}", roi.x, roi.y, roi.width, roi.height)
}

/// An open archive.
pub struct Store {
    pub(super) db: Connection,
    pub(super) folder: PathBuf,
    /// Those met since the start, with the numbers of line and context.
    contexts: Vec<(Context, i64, i64)>,
    /// Bytes of all pictures.
    pub(super) image_bytes: u64,
    power_safe: bool,
    inode: u64,
    /// Since the WAL was last written back.
    commits: u32,
}

impl Store {
    /// Opens the archive in `folder` for writing; makes it if there is none. A damaged one is moved aside with its
    /// pictures, and the second value says where to.
    pub fn open(folder: &Path, power_safe: bool) -> Result<(Self, Option<PathBuf>), StoreError> {
        let made = std::fs::create_dir_all(folder.join(IMAGES));
        made.map_err(|source| StoreError::Folder { path: folder.to_owned(), source })?;
        match Self::open_whole(folder, power_safe) {
            Err(error) if error.is_corrupt() => {
                let aside = set_aside(folder)?;
                Ok((Self::open_whole(folder, power_safe)?, Some(aside)))
            }
            other => other.map(|store| (store, None)),
        }
    }

    fn open_whole(folder: &Path, power_safe: bool) -> Result<Self, StoreError> {
        let path = folder.join(DATABASE);
        let failed = |source| StoreError::Open { path: path.clone(), source };
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let db = Connection::open_with_flags(&path, flags).map_err(failed)?;
        db.busy_timeout(BUSY).map_err(failed)?;
        let version = check(&db, &path)?;
        if version == 0 {
            // Both hold only if they are set before the first table.
            db.pragma_update(None, "auto_vacuum", "INCREMENTAL").map_err(failed)?;
            db.pragma_update(None, "application_id", APPLICATION).map_err(failed)?;
        }
        db.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(())).map_err(failed)?;
        db.pragma_update(None, "synchronous", if power_safe { "FULL" } else { "NORMAL" }).map_err(failed)?;
        // The archive's thread does it when nobody waits for a commit.
        db.query_row("PRAGMA wal_autocheckpoint = 0", [], |_| Ok(())).map_err(failed)?;
        for (i, migration) in MIGRATIONS.iter().enumerate().skip(version) {
            db.execute_batch(&format!(
                "BEGIN IMMEDIATE; {migration} PRAGMA user_version = {}; COMMIT;",
                i + 1
            ))
            .map_err(failed)?;
        }
        let mut store = Store {
            db,
            folder: folder.to_owned(),
            contexts: Vec::new(),
            image_bytes: 0,
            power_safe,
            inode: inode(&path),
            commits: 0,
        };
        store.recount()?;
        store.settle_images()?;
        // Touches the ends of the table and of an index: what is damaged there is found now.
        store.db.query_row("SELECT max(id), min(captured_at) FROM verdicts", [], |_| Ok(()))?;
        Ok(store)
    }

    /// For reading only, beside a daemon that writes, or without one.
    pub fn read(folder: &Path) -> Result<Self, StoreError> {
        let path = folder.join(DATABASE);
        if !path.try_exists().unwrap_or(true) {
            return Err(StoreError::Missing { path: folder.to_owned() });
        }
        let opened = Self::open_existing(&path, folder, OpenFlags::SQLITE_OPEN_READ_ONLY);
        let wal = folder.join(format!("{DATABASE}-wal"));
        match opened {
            // SQLite wants to make files beside a database in WAL mode. Where it may not, nobody else writes
            // to this one either, or there would be a WAL.
            Err(error) if error.is_denied() && !wal.exists() => {
                let uri = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
                Self::open_existing(&immutable_uri(&path), folder, uri)
            }
            opened => opened,
        }
    }

    /// For reading and for reviews.
    pub fn review(folder: &Path) -> Result<Self, StoreError> {
        let path = folder.join(DATABASE);
        if !path.try_exists().unwrap_or(true) {
            return Err(StoreError::Missing { path: folder.to_owned() });
        }
        Self::open_existing(&path, folder, OpenFlags::SQLITE_OPEN_READ_WRITE)
    }

    fn open_existing(path: &Path, folder: &Path, flags: OpenFlags) -> Result<Self, StoreError> {
        let failed = |source| StoreError::Open { path: path.to_owned(), source };
        let db =
            Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX).map_err(failed)?;
        db.busy_timeout(BUSY).map_err(failed)?;
        let version = check(&db, path)?;
        if version < MIGRATIONS.len() {
            return Err(StoreError::Older { path: path.to_owned(), version, known: MIGRATIONS.len() });
        }
        let folder = folder.to_owned();
        let inode = inode(&folder.join(DATABASE));
        Ok(Store { db, folder, contexts: vec![], image_bytes: 0, power_safe: false, inode, commits: 0 })
    }

    /// Moves what is damaged aside and begins anew. Says where to.
    pub(super) fn replace(&mut self) -> Result<PathBuf, StoreError> {
        let aside = set_aside(&self.folder)?;
        self.reopen()?;
        Ok(aside)
    }

    pub(super) fn reopen(&mut self) -> Result<(), StoreError> {
        *self = Self::open(&self.folder, self.power_safe)?.0;
        Ok(())
    }

    /// Whether the file that is written to is still the one in the folder.
    pub(super) fn is_in_place(&self) -> bool {
        inode(&self.folder.join(DATABASE)) == self.inode
    }

    /// Rows and what became of pictures, all or none.
    pub(super) fn write<'a>(
        &mut self,
        entries: impl Iterator<Item = &'a Entry>,
        images: &[Imaged],
    ) -> Result<Vec<Imaged>, StoreError> {
        let result = self.try_write(entries, images);
        if result.is_err() {
            // A context that was met in vain has no row.
            self.contexts.clear();
        }
        result
    }

    fn try_write<'a>(
        &mut self,
        entries: impl Iterator<Item = &'a Entry>,
        images: &[Imaged],
    ) -> Result<Vec<Imaged>, StoreError> {
        let Store { db, contexts, .. } = self;
        let transaction = db.transaction()?;
        {
            let mut insert = transaction.prepare_cached(
                "INSERT INTO verdicts (line, context, sequence, captured_at, verdict, reason, score, latency_us, \
                 frame_hash, image, part_id) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
            )?;
            for Entry { record, image } in entries {
                let (line, context) = context_of(&transaction, contexts, &record.rules)?;
                insert.execute(params![
                    line,
                    context,
                    record.sequence as i64,
                    record.captured_at.as_millisecond(),
                    verdict_label(record.verdict),
                    record.reason.map(reason_label),
                    record.score.map(f64::from),
                    i64::try_from(record.latency.as_micros()).unwrap_or(i64::MAX),
                    record.frame_hash.map(|hash| hash.to_string()),
                    image.then_some(0),
                    record.part_id.as_ref().map(PartId::as_str),
                ])?;
            }
        }
        let mut homeless = Vec::new();
        let mut added = 0;
        for image in images {
            let mut update = transaction.prepare_cached(
                "UPDATE verdicts SET image = ?1 WHERE captured_at = ?2 AND sequence = ?3 \
                 AND line = (SELECT id FROM lines WHERE name = ?4)",
            )?;
            let bytes = image.bytes.map(|bytes| bytes as i64);
            let changed =
                update.execute(params![bytes, image.millisecond, image.sequence as i64, image.line])?;
            match changed {
                0 => homeless.push(image.clone()),
                _ => added += image.bytes.unwrap_or(0),
            }
        }
        transaction.commit()?;
        self.image_bytes += added;
        self.commits += 1;
        Ok(homeless)
    }

    /// Writes the WAL back if it has grown. Waits for no reader: what one still needs is left for the next time.
    pub(super) fn checkpoint(&mut self) -> Result<(), StoreError> {
        if self.commits >= CHECKPOINT {
            self.commits = 0;
            self.db.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))?;
        }
        Ok(())
    }

    /// Bytes of the database that are in use.
    pub(super) fn database_bytes(&self) -> Result<u64, StoreError> {
        let pragma = |name: &str| self.db.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        let pages = pragma("page_count")? - pragma("freelist_count")?;
        Ok((pages * pragma("page_size")?).max(0) as u64)
    }

    pub(super) fn recount(&mut self) -> Result<(), StoreError> {
        let sum = "SELECT coalesce(sum(image), 0) FROM verdicts WHERE image IS NOT NULL";
        self.image_bytes = self.db.query_row(sum, [], |row| row.get::<_, i64>(0))?.max(0) as u64;
        Ok(())
    }

    /// Pictures that were on their way when the last run ended either arrived or did not.
    fn settle_images(&mut self) -> Result<(), StoreError> {
        let pending: Vec<(i64, i64, String, i64)> = {
            let mut query = self.db.prepare(
                "SELECT v.id, v.captured_at, l.name, v.sequence FROM verdicts v JOIN lines l ON l.id = v.line \
                 WHERE v.image = 0 AND v.image IS NOT NULL",
            )?;
            let rows = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?;
            rows.collect::<Result<_, _>>()?
        };
        for (id, millisecond, line, sequence) in pending {
            let at = Timestamp::from_millisecond(millisecond).unwrap_or_default();
            let paths = super::image_paths(&self.folder, &line, at, sequence as u64);
            remove_half_written(paths[0].parent());
            let sizes = paths.iter().map(|path| std::fs::metadata(path).map_or(0, |meta| meta.len()));
            let bytes: u64 = sizes.sum();
            // The picture itself is written last.
            let bytes = paths[0].exists().then_some(bytes as i64);
            self.db.execute("UPDATE verdicts SET image = ?1 WHERE id = ?2", params![bytes, id])?;
        }
        self.recount()
    }

    /// A disk with so few pages, for tests.
    #[cfg(test)]
    pub(super) fn limit_pages(&self, pages: i64) {
        self.db.query_row(&format!("PRAGMA max_page_count = {pages}"), [], |_| Ok(())).unwrap();
    }
}

/// What became of a picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Imaged {
    pub line: String,
    pub millisecond: i64,
    pub sequence: u64,
    /// `None`: it could not be written.
    pub bytes: Option<u64>,
}

impl Imaged {
    pub fn of(record: &Record, bytes: Option<u64>) -> Self {
        Imaged {
            line: record.rules.line.to_string(),
            millisecond: record.captured_at.as_millisecond(),
            sequence: record.sequence,
            bytes,
        }
    }
}

fn context_of(
    db: &Connection,
    known: &mut Vec<(Context, i64, i64)>,
    rules: &Rules,
) -> Result<(i64, i64), StoreError> {
    if let Some((_, line, context)) = known.iter().find(|(context, ..)| context.is_of(rules)) {
        return Ok((*line, *context));
    }
    let name = rules.line.as_str();
    db.execute("INSERT OR IGNORE INTO lines (name) VALUES (?1)", [name])?;
    let line: i64 = db.query_row("SELECT id FROM lines WHERE name = ?1", [name], |row| row.get(0))?;
    let roi = rules.roi.map(roi_text);
    let values = params![
        line,
        rules.model_hash,
        rules.config_hash,
        f64::from(rules.thresholds.unsure),
        f64::from(rules.thresholds.bad),
        roi,
    ];
    let found: Option<i64> = db
        .query_row(
            "SELECT id FROM contexts WHERE line = ?1 AND model_hash = ?2 AND config_hash = ?3 AND unsure = ?4 \
             AND bad = ?5 AND roi IS ?6",
            values,
            |row| row.get(0),
        )
        .optional()?;
    let context = match found {
        Some(id) => id,
        None => {
            db.execute(
                "INSERT INTO contexts (line, model_hash, config_hash, unsure, bad, roi) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                values,
            )?;
            db.last_insert_rowid()
        }
    };
    let of = Context {
        line: name.to_owned(),
        model_hash: rules.model_hash.clone(),
        config_hash: rules.config_hash.clone(),
        unsure: rules.thresholds.unsure,
        bad: rules.thresholds.bad,
        roi: rules.roi,
    };
    known.push((of, line, context));
    Ok((line, context))
}

fn reason_label(reason: crate::outputs::Reason) -> String {
    // As in the JSON of verdicts.
    serde_json::to_value(reason).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}
