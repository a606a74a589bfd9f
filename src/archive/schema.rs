//! The schema of the database, and what is looked at before anything is written to a file.

use std::path::Path;

use rusqlite::Connection;

use super::store::StoreError;

/// "insp", in the file's header: what is not ours is never written to.
pub(super) const APPLICATION: i32 = 0x696e_7370;

/// Each takes the schema one version further. What was released is never changed.
pub(super) const MIGRATIONS: &[&str] = &["
CREATE TABLE lines (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE) STRICT;
-- What many verdicts have in common.
CREATE TABLE contexts (
    id INTEGER PRIMARY KEY,
    line INTEGER NOT NULL REFERENCES lines (id),
    model_hash TEXT NOT NULL,
    config_hash TEXT NOT NULL,
    unsure REAL NOT NULL,
    bad REAL NOT NULL,
    -- x,y,width,height of the region that was judged; NULL: the whole picture
    roi TEXT
) STRICT;
CREATE TABLE verdicts (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    line INTEGER NOT NULL REFERENCES lines (id),
    context INTEGER NOT NULL REFERENCES contexts (id),
    sequence INTEGER NOT NULL,
    part_id TEXT,
    captured_at INTEGER NOT NULL, -- milliseconds since 1970, UTC
    verdict TEXT NOT NULL,
    reason TEXT,
    score REAL, -- NULL: none, or not a number
    latency_us INTEGER NOT NULL,
    frame_hash TEXT,
    image INTEGER, -- bytes of the pictures; 0: on their way; NULL: none
    review TEXT,
    reviewed_at INTEGER,
    reviewer TEXT
) STRICT;
CREATE INDEX verdicts_by_time ON verdicts (captured_at);
CREATE INDEX verdicts_by_line ON verdicts (line, verdict, captured_at, score);
CREATE INDEX verdicts_by_part ON verdicts (part_id) WHERE part_id IS NOT NULL;
CREATE INDEX images_by_time ON verdicts (captured_at, image) WHERE image IS NOT NULL;
CREATE INDEX images_by_line ON verdicts (line, verdict, captured_at) WHERE image IS NOT NULL;
CREATE INDEX reviews_by_line ON verdicts (line, verdict, captured_at) WHERE review IS NOT NULL;
CREATE VIEW parts AS
    SELECT v.id, l.name AS line, v.sequence, v.part_id, datetime(v.captured_at / 1000.0, 'unixepoch', 'subsec') AS
        captured_at, v.verdict, v.reason, v.score, c.unsure, c.bad, v.latency_us / 1000.0 AS latency_ms, v.frame_hash,
        c.model_hash, c.config_hash, v.image, v.review, v.reviewer
    FROM verdicts v JOIN lines l ON l.id = v.line JOIN contexts c ON c.id = v.context;
"];

/// The version of its schema, 0 for an empty file, if it is ours.
pub(super) fn check(db: &Connection, path: &Path) -> Result<usize, StoreError> {
    let failed = |source| StoreError::Open { path: path.to_owned(), source };
    let pragma = |name: &str| db.pragma_query_value(None, name, |row| row.get::<_, i32>(0)).map_err(failed);
    let tables: i64 =
        db.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(failed)?;
    if tables > 0 && pragma("application_id")? != APPLICATION {
        return Err(StoreError::Foreign { path: path.to_owned() });
    }
    let version = usize::try_from(pragma("user_version")?).unwrap_or(0);
    let known = MIGRATIONS.len();
    if version > known {
        return Err(StoreError::Newer { path: path.to_owned(), version, known });
    }
    Ok(version)
}
