//! The operator's page and what it asks for: verdicts as they are given, pictures of the newest parts, and the
//! archive with its reviews. The page is in the binary and asks nobody but this daemon. All may read; a review
//! needs what [`Access`] asks for.
//!
//! | path | answers with |
//! |---|---|
//! | `/` | the page |
//! | `/api/events` | server-sent events: `verdict` as they are given, `health` each second |
//! | `/api/lines/NAME/history?n=` | the last verdicts of a line, at most 1000 |
//! | `/lines/NAME/live.jpg?heat=` | the newest picture of a line; 404 until the next part passes |
//! | `/api/parts?line=&verdict=&review=&before=&limit=` | parts of the archive, newest first, at most 200 |
//! | `/api/parts/ID/image.jpg`, `heatmap.png` | pictures of a part |
//! | `POST /api/parts/ID/review` | keeps `{"review": …, "reviewer": …}` and answers with the part |

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::rejection::JsonRejection;
use axum::extract::{ConnectInfo, Path, Query, State};
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio_stream::wrappers::{BroadcastStream, IntervalStream};
use tokio_stream::{Stream, StreamExt};

use crate::archive::{Filter, PartKey, Review, Row, Still, Store, StoreError};
use crate::imaging::RgbImage;
use crate::model::{Thresholds, Verdict};
use crate::outputs::access::Access;
use crate::outputs::http::{Board, Shown, denied, refuse};
use crate::outputs::live::{HISTORY, jpeg};
use crate::telemetry::verdict_of;

/// Parts in one answer.
const MOST_PARTS: usize = 200;

/// Longer names of reviewers are cut.
const LONGEST_NAME: usize = 64;

const HTML: &str = include_str!("index.html");
const SCRIPT: &str = include_str!("app.js");
const ICON: &str = include_str!("icon.svg");
const STYLE: &str = include_str!("style.css");

/// Nothing from elsewhere, nothing inline, in nobody's frame.
const POLICY: &str = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

pub fn router(access: &Access) -> Router<Arc<dyn Board>> {
    let access = access.clone();
    let review = move |peer, headers, board, id, body| review(access, peer, headers, board, id, body);
    Router::new()
        .route("/", get(|| asset("text/html; charset=utf-8", HTML)))
        .route("/page/app.js", get(|| asset("text/javascript; charset=utf-8", SCRIPT)))
        .route("/page/style.css", get(|| asset("text/css; charset=utf-8", STYLE)))
        .route("/page/icon.svg", get(|| asset("image/svg+xml", ICON)))
        .route("/api/events", get(events))
        .route("/api/lines/{line}/history", get(history))
        .route("/lines/{line}/live.jpg", get(live))
        .route("/api/parts", get(parts))
        .route("/api/parts/{id}/image.jpg", get(image))
        .route("/api/parts/{id}/heatmap.png", get(heatmap))
        .route("/api/parts/{id}/review", post(review))
}

async fn asset(kind: &'static str, text: &'static str) -> impl IntoResponse {
    let policy = HeaderName::from_static("content-security-policy");
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CACHE_CONTROL, "no-cache"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (policy, POLICY),
    ];
    (headers, text)
}

async fn events(State(board): Shown) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let verdicts = BroadcastStream::new(board.live().listen())
        // Who is too slow misses some, and goes on.
        .filter_map(|point| Event::default().event("verdict").json_data(point.ok()?).ok());
    let ticks = IntervalStream::new(tokio::time::interval(Duration::from_secs(1)));
    let health = ticks.filter_map(move |_| Event::default().event("health").json_data(board.health()).ok());
    Sse::new(health.merge(verdicts).map(Ok)).keep_alive(KeepAlive::default())
}

#[derive(Deserialize)]
struct Last {
    n: Option<usize>,
}

async fn history(State(board): Shown, Path(line): Path<String>, Query(last): Query<Last>) -> Response {
    match board.live().history(&line, last.n.unwrap_or(HISTORY)) {
        Some(points) => Json(points).into_response(),
        None => refuse(StatusCode::NOT_FOUND, &"there is no such line"),
    }
}

#[derive(Deserialize)]
struct Look {
    heat: Option<u8>,
}

async fn live(State(board): Shown, Path(line): Path<String>, Query(look): Query<Look>) -> Response {
    let Some(shown) = board.live().picture(&line, Instant::now()) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let bytes = if look.heat.unwrap_or(1) == 0 { shown.plain.clone() } else { shown.heat.clone() };
    ([(header::CONTENT_TYPE, "image/jpeg"), (header::CACHE_CONTROL, "no-store")], bytes).into_response()
}

// ---------------------------------------------------------------- the archive

/// A part as the page gets it.
#[derive(Serialize)]
struct Part {
    id: i64,
    line: String,
    sequence: u64,
    part_id: Option<String>,
    captured_at: String,
    verdict: Verdict,
    reason: Option<String>,
    score: Option<f32>,
    thresholds: Thresholds,
    model_hash: String,
    review: Option<&'static str>,
    reviewer: Option<String>,
    has_image: bool,
    has_heatmap: bool,
    /// Ask for parts before this one with it.
    before: String,
}

impl From<Row> for Part {
    fn from(row: Row) -> Self {
        Part {
            has_image: row.image.is_some(),
            has_heatmap: row.heatmap().is_some(),
            before: format!("{}-{}", row.captured_at.as_millisecond(), row.id),
            captured_at: format!("{:.3}", row.captured_at),
            id: row.id,
            line: row.line,
            sequence: row.sequence,
            part_id: row.part_id,
            verdict: row.verdict,
            reason: row.reason,
            score: row.score,
            thresholds: row.thresholds,
            model_hash: row.model_hash,
            review: row.review.map(Review::label),
            reviewer: row.reviewer,
        }
    }
}

/// Why the archive gives no answer.
enum No {
    Archive,
    Part,
    Store(StoreError),
    File(String),
    Thread,
}

impl IntoResponse for No {
    fn into_response(self) -> Response {
        match self {
            No::Archive => refuse(
                StatusCode::NOT_FOUND,
                &"no archive is kept; to keep one, set `folder` under [archive] in the configuration",
            ),
            No::Part => {
                refuse(StatusCode::NOT_FOUND, &"the archive has no such part, or no such picture of it")
            }
            No::Store(error) => refuse(StatusCode::SERVICE_UNAVAILABLE, &error),
            No::File(why) => refuse(StatusCode::SERVICE_UNAVAILABLE, &why),
            No::Thread => refuse(StatusCode::SERVICE_UNAVAILABLE, &"the daemon is ending"),
        }
    }
}

/// Asks the archive on a thread that may wait for the disk.
async fn ask<T: Send + 'static>(
    board: &Arc<dyn Board>,
    question: impl FnOnce(PathBuf) -> Result<T, No> + Send + 'static,
) -> Result<T, No> {
    let folder = board.archive().ok_or(No::Archive)?;
    tokio::task::spawn_blocking(move || question(folder)).await.unwrap_or(Err(No::Thread))
}

#[derive(Deserialize)]
struct Wanted {
    line: Option<String>,
    verdict: Option<String>,
    /// A review, or `none`.
    review: Option<String>,
    before: Option<String>,
    limit: Option<usize>,
}

impl Wanted {
    fn filter(&self) -> Result<Filter, String> {
        let verdict = |text: &String| verdict_of(text).ok_or_else(|| format!("{text:?} is no verdict"));
        Ok(Filter {
            lines: self.line.iter().cloned().collect(),
            verdicts: match &self.verdict {
                Some(text) => vec![verdict(text)?],
                None => vec![Verdict::Bad, Verdict::Unsure],
            },
            reviewed: self.review.as_ref().map(|review| review != "none"),
            before: self.before.as_deref().map(before).transpose()?,
            ..Filter::default()
        })
    }
}

fn before(text: &str) -> Result<(Timestamp, i64), String> {
    let parts = text.rsplit_once('-').and_then(|(time, id)| {
        Some((Timestamp::from_millisecond(time.parse().ok()?).ok()?, id.parse().ok()?))
    });
    parts.ok_or_else(|| format!("before={text:?} is not what a part's `before` says"))
}

async fn parts(State(board): Shown, Query(wanted): Query<Wanted>) -> Response {
    let filter = match wanted.filter() {
        Ok(filter) => filter,
        Err(why) => return refuse(StatusCode::BAD_REQUEST, &why),
    };
    let limit = wanted.limit.unwrap_or(MOST_PARTS).min(MOST_PARTS);
    let kind = wanted.review.filter(|review| review != "none");
    let found = ask(&board, move |folder| {
        let rows = Store::read(&folder).and_then(|store| store.list(&filter, limit)).map_err(No::Store)?;
        let of_kind = |row: &Row| kind.is_none() || row.review.map(Review::label) == kind.as_deref();
        Ok(rows.into_iter().filter(of_kind).map(Part::from).collect::<Vec<_>>())
    });
    match found.await {
        Ok(parts) => ([(header::CACHE_CONTROL, "no-store")], Json(parts)).into_response(),
        Err(no) => no.into_response(),
    }
}

fn find(store: &Store, id: i64) -> Result<Row, No> {
    store.find(&PartKey::Number(id)).map_err(No::Store)?.ok_or(No::Part)
}

/// A picture of a part never changes.
fn picture(kind: &'static str, found: Result<Vec<u8>, No>) -> Response {
    match found {
        Ok(bytes) => {
            let headers = [(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "max-age=86400, immutable")];
            (headers, bytes).into_response()
        }
        Err(no) => no.into_response(),
    }
}

async fn image(State(board): Shown, Path(id): Path<i64>) -> Response {
    let found = ask(&board, move |folder| {
        let row = find(&Store::read(&folder).map_err(No::Store)?, id)?;
        let path = row.image.ok_or(No::Part)?;
        let still = Still::read(&path).map_err(|error| No::File(error.to_string()))?;
        let image = RgbImage::from_frame(&still.view()).map_err(|error| No::File(error.to_string()))?;
        jpeg(&image).map_err(No::File)
    });
    picture("image/jpeg", found.await)
}

async fn heatmap(State(board): Shown, Path(id): Path<i64>) -> Response {
    let found = ask(&board, move |folder| {
        let row = find(&Store::read(&folder).map_err(No::Store)?, id)?;
        std::fs::read(row.heatmap().ok_or(No::Part)?).map_err(|error| No::File(error.to_string()))
    });
    picture("image/png", found.await)
}

/// The body of a review. `null` takes it back.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Said {
    review: Option<String>,
    reviewer: String,
}

async fn review(
    access: Access,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    State(board): Shown,
    Path(id): Path<i64>,
    // Its media type makes a browser ask before it sends what a stranger's page wants sent.
    body: Result<Json<Said>, JsonRejection>,
) -> Response {
    if let Err(why) = access.check(peer, &headers) {
        return denied(why);
    }
    let Said { review, reviewer } = match body {
        Ok(Json(said)) => said,
        Err(rejection) => return refuse(rejection.status(), &rejection.body_text()),
    };
    let review = match review {
        None => None,
        Some(text) => match Review::from_label(&text) {
            Some(review) => Some(review),
            None => return refuse(StatusCode::BAD_REQUEST, &format!("{text:?} is no review")),
        },
    };
    let reviewer: String = reviewer.chars().filter(|c| !c.is_control()).take(LONGEST_NAME).collect();
    let kept = ask(&board, move |folder| {
        let store = Store::review(&folder).map_err(No::Store)?;
        match store.set_review(id, review, &reviewer).map_err(No::Store)? {
            true => find(&store, id).map(Part::from),
            false => Err(No::Part),
        }
    });
    match kept.await {
        Ok(part) => Json(part).into_response(),
        Err(no) => no.into_response(),
    }
}
