//! `/metrics`, `/healthz` and `/status`, a page that needs no script, on one thread of its own; `POST
//! /lines/NAME/trigger` (see [`access`](super::access) for who may). What else is served is given to it.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use axum::extract::connect_info::IntoMakeServiceWithConnectInfo;
use axum::extract::rejection::JsonRejection;
use axum::extract::{ConnectInfo, DefaultBodyLimit, Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};

use super::PartId;
use super::access::{Access, Denied};

use super::live::Live;

/// What is shown. Asked on the HTTP thread; must not wait.
pub trait Board: Send + Sync + 'static {
    /// Prometheus' text format.
    fn scrape(&self) -> String;
    fn health(&self) -> Health;
    /// The next frame of a line is this part, or one that gets a name.
    fn trigger(&self, line: &str, part: Option<PartId>) -> Result<PartId, TriggerRefused>;
    /// The newest picture of a line.
    fn heatmap(&self, line: &str) -> Option<PathBuf>;
    /// What the page shows as it happens.
    fn live(&self) -> &Live;
    /// The archive's folder, if one is kept.
    fn archive(&self) -> Option<PathBuf>;
}

/// Why a trigger is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TriggerRefused {
    #[error("there is no such line")]
    NoLine,
    #[error("the line is not triggered by software; set mode = \"software\" in [line.trigger]")]
    NotSoftware,
    #[error("the triggers before are still waiting for their frames")]
    Busy,
}

impl TriggerRefused {
    fn status(self) -> StatusCode {
        match self {
            TriggerRefused::NoLine => StatusCode::NOT_FOUND,
            TriggerRefused::NotSoftware => StatusCode::CONFLICT,
            TriggerRefused::Busy => StatusCode::TOO_MANY_REQUESTS,
        }
    }
}

/// The body of `/healthz`.
#[derive(Clone, Debug, Serialize)]
pub struct Health {
    /// Every line makes progress.
    pub ok: bool,
    pub state: &'static str,
    pub version: &'static str,
    pub config_hash: String,
    /// Why the archive takes nothing, as a sentence. The lines make progress all the same.
    pub archive_fault: Option<String>,
    pub lines: Vec<LineHealth>,
}

#[derive(Clone, Debug, Serialize)]
pub struct LineHealth {
    pub line: String,
    pub ok: bool,
    /// What is wrong, as a sentence.
    pub why: Option<String>,
    /// Why the CPU judges in a GPU's place, as a sentence. The line makes progress all the same.
    pub device_fault: Option<String>,
    pub ended: bool,
    pub captured: u64,
    pub in_flight: u64,
    pub dropped: u64,
    /// Times that the camera was started anew after a fault.
    pub restarts: u64,
    pub good: u64,
    pub unsure: u64,
    pub bad: u64,
    pub late: u64,
    pub unjudged: u64,
    pub last_score: Option<f32>,
    pub has_heatmap: bool,
}

/// A server that runs until it is dropped.
pub struct Server {
    pub address: SocketAddr,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Binds `address`, so that a taken port is an error at start.
    pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    }

    /// `more`: what else is served.
    pub fn start(
        listener: TcpListener,
        board: Arc<dyn Board>,
        access: Access,
        more: Router<Arc<dyn Board>>,
    ) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let thread = std::thread::Builder::new().name("http".to_owned()).spawn(move || {
            runtime.block_on(async move {
                let listener = match tokio::net::TcpListener::from_std(listener) {
                    Ok(listener) => listener,
                    Err(error) => return tracing::error!(%error, "HTTP is not served."),
                };
                tokio::select! {
                    served = axum::serve(listener, router(board, access, more)).into_future() => {
                        if let Err(error) = served {
                            tracing::error!(%error, "HTTP is no longer served.");
                        }
                    }
                    // Open connections are cut: a client must not hold up the daemon's end.
                    _ = stopped => {}
                }
            });
        })?;
        Ok(Server { address, stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed by the thread itself.
            let _ = thread.join();
        }
    }
}

pub type Shown = State<Arc<dyn Board>>;

type Served = IntoMakeServiceWithConnectInfo<Router, SocketAddr>;

/// Larger bodies are refused before they are read.
const LARGEST_BODY: usize = 4096;

fn router(board: Arc<dyn Board>, access: Access, more: Router<Arc<dyn Board>>) -> Served {
    let trigger = move |peer, headers, board, line, body| trigger(access, peer, headers, board, line, body);
    Router::new()
        .route("/lines/{line}/trigger", post(trigger))
        .merge(more)
        .layer(DefaultBodyLimit::max(LARGEST_BODY))
        .route("/status", get(page))
        .route("/metrics", get(metrics))
        .route("/healthz", get(health))
        .route("/lines/{line}/heatmap.png", get(heatmap))
        .with_state(board)
        .into_make_service_with_connect_info()
}

/// The body of a trigger.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Part {
    part_id: Option<String>,
}

async fn trigger(
    access: Access,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    State(board): Shown,
    Path(line): Path<String>,
    // Its media type makes a browser ask before it sends what a stranger's page wants sent.
    body: Result<Json<Part>, JsonRejection>,
) -> Response {
    if let Err(why) = access.check(peer, &headers) {
        return denied(why);
    }
    let Part { part_id } = match body {
        Ok(Json(part)) => part,
        Err(rejection) => return refuse(rejection.status(), &rejection.body_text()),
    };
    let part = match part_id.map(|text| text.parse()).transpose() {
        Ok(part) => part,
        Err(error) => return refuse(StatusCode::BAD_REQUEST, &error),
    };
    match board.trigger(&line, part) {
        Ok(part) => {
            let taken = serde_json::json!({ "line": line, "part_id": part });
            (StatusCode::ACCEPTED, Json(taken)).into_response()
        }
        Err(refused) => refuse(refused.status(), &refused),
    }
}

/// An error as JSON.
pub fn refuse(status: StatusCode, error: &dyn std::fmt::Display) -> Response {
    (status, Json(serde_json::json!({ "error": error.to_string() }))).into_response()
}

/// Why a change is not made.
pub fn denied(why: Denied) -> Response {
    let status = match why {
        Denied::NoToken | Denied::WrongToken => StatusCode::UNAUTHORIZED,
        Denied::NotLocal => StatusCode::FORBIDDEN,
    };
    refuse(status, &why)
}

async fn metrics(State(board): Shown) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], board.scrape())
}

async fn health(State(board): Shown) -> Response {
    let health = board.health();
    let status = if health.ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, [(header::CACHE_CONTROL, "no-store")], Json(health)).into_response()
}

/// The newest picture, from where it was written: names come from the configuration, never from a URL.
async fn heatmap(State(board): Shown, Path(line): Path<String>) -> Response {
    let read = board.heatmap(&line).map(std::fs::read);
    match read {
        Some(Ok(png)) => {
            ([(header::CONTENT_TYPE, "image/png"), (header::CACHE_CONTROL, "no-store")], png).into_response()
        }
        Some(Err(error)) => {
            tracing::debug!(line, %error, "The newest heatmap is gone.");
            StatusCode::NOT_FOUND.into_response()
        }
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn page(State(board): Shown) -> Html<String> {
    Html(render(&board.health()))
}

const STYLE: &str = "body{font:16px system-ui;margin:2rem;color:#222;background:#fafafa}\
table{border-collapse:collapse}td,th{padding:.4rem .9rem;text-align:right;border-bottom:1px solid #ddd}\
td:first-child,th:first-child{text-align:left}.sick{color:#b00020;font-weight:600}\
figure{display:inline-block;margin:1rem 1rem 0 0}img{max-width:24rem;max-height:24rem}";

fn render(health: &Health) -> String {
    let mut rows = String::new();
    let mut pictures = String::new();
    for l in &health.lines {
        let name = escape(&l.line);
        let state = match (&l.why, l.ended) {
            (Some(why), _) => format!("<span class=sick>{}</span>", escape(why)),
            (None, true) => "ended".to_owned(),
            (None, false) => "runs".to_owned(),
        };
        let device = l
            .device_fault
            .as_deref()
            .map_or(String::new(), |fault| format!("<br><span class=sick>{}</span>", escape(fault)));
        let score = l.last_score.map_or("–".to_owned(), |score| format!("{score:.3}"));
        rows.push_str(&format!(
            "<tr><td>{name}<td>{state}{device}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{score}\n",
            l.captured, l.good, l.unsure, l.bad, l.late, l.unjudged, l.dropped
        ));
        if l.has_heatmap {
            pictures.push_str(&format!(
                "<figure><img src=\"/lines/{name}/heatmap.png\" alt=\"newest find of {name}\"><figcaption>{name}</figcaption></figure>\n"
            ));
        }
    }
    let archive = health.archive_fault.as_deref().map_or(String::new(), |fault| {
        format!("<caption class=sick>The archive takes nothing: {}</caption>", escape(fault))
    });
    let (state, version, config) = (health.state, health.version, &health.config_hash);
    format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta http-equiv=refresh content=2><title>inspectd: {state}</title>\
         <style>{STYLE}</style><h1>inspectd: {state}</h1>\n<table>{archive}<tr><th>line<th>state<th>captured<th>good<th>unsure<th>bad\
         <th>late<th>unjudged<th>dropped<th>last score\n{rows}</table>\n{pictures}<p>Version {version}, configuration {config}. \
         <a href=/metrics>Metrics</a>, <a href=/healthz>health</a>.\n"
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::time::Instant;

    struct Fake {
        ok: bool,
        picture: PathBuf,
        live: Live,
    }

    impl Board for Fake {
        fn scrape(&self) -> String {
            "inspectd_up 1\n".into()
        }

        fn health(&self) -> Health {
            let line = LineHealth {
                line: "cam1".into(),
                ok: self.ok,
                why: (!self.ok).then(|| "no frame for <5 s>".into()),
                device_fault: (!self.ok).then(|| "cuda:0 failed, the CPU judges: <lost>".into()),
                ended: false,
                captured: 9,
                in_flight: 1,
                dropped: 1,
                restarts: 0,
                good: 4,
                unsure: 0,
                bad: 2,
                late: 1,
                unjudged: 0,
                last_score: Some(0.5),
                has_heatmap: true,
            };
            let archive_fault = (!self.ok).then(|| "the disk is <full>".into());
            let (state, version, config_hash) = ("running", "0", "c".into());
            Health { ok: self.ok, state, version, config_hash, archive_fault, lines: vec![line] }
        }

        fn trigger(&self, line: &str, part: Option<PartId>) -> Result<PartId, TriggerRefused> {
            match line {
                "cam1" => Ok(part.unwrap_or("trigger-1".parse().unwrap())),
                "busy" => Err(TriggerRefused::Busy),
                "free" => Err(TriggerRefused::NotSoftware),
                _ => Err(TriggerRefused::NoLine),
            }
        }

        fn heatmap(&self, line: &str) -> Option<PathBuf> {
            (line == "cam1").then(|| self.picture.clone())
        }

        fn live(&self) -> &Live {
            &self.live
        }

        fn archive(&self) -> Option<PathBuf> {
            None
        }
    }

    fn ask(server: &Server, path: &str) -> String {
        send(server, &format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))
    }

    fn send(server: &Server, request: &str) -> String {
        let mut stream = TcpStream::connect(server.address).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }

    fn server(ok: bool, picture: PathBuf) -> Server {
        let listener = Server::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let live = Live::new(["cam1"], Instant::now());
        Server::start(listener, Arc::new(Fake { ok, picture, live }), Access::local(), Router::new()).unwrap()
    }

    #[test]
    fn a_trigger_is_taken_or_refused_with_a_reason() {
        let server = server(true, PathBuf::new());
        let post = |line: &str, host: &str, kind: &str, body: &str| {
            let length = body.len();
            send(
                &server,
                &format!(
                    "POST /lines/{line}/trigger HTTP/1.1\r\nHost: {host}\r\nContent-Type: {kind}\r\n\
                     Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
                ),
            )
        };
        const JSON: &str = "application/json";
        let taken = post("cam1", "localhost", JSON, "{\"part_id\": \"A 7\"}");
        assert!(taken.starts_with("HTTP/1.1 202"), "{taken}");
        assert!(taken.ends_with("{\"line\":\"cam1\",\"part_id\":\"A 7\"}"), "{taken}");
        assert!(post("cam1", "127.0.0.1:9464", JSON, "{}").ends_with("\"part_id\":\"trigger-1\"}"));
        let long = format!("{{\"part_id\": \"{}\"}}", "x".repeat(5000));
        for (line, host, kind, body, status) in [
            ("nowhere", "localhost", JSON, "{}", 404),
            ("free", "localhost", JSON, "{}", 409),
            ("busy", "localhost", JSON, "{}", 429),
            ("cam1", "localhost", JSON, "{\"part_id\": \"\"}", 400),
            ("cam1", "localhost", JSON, "{\"part\": \"7\"}", 422),
            ("cam1", "localhost", JSON, "{", 400),
            ("cam1", "localhost", JSON, &long, 413),
            ("cam1", "localhost", "text/plain", "{}", 415),
            ("cam1", "evil.example", JSON, "{}", 403),
        ] {
            let answer = post(line, host, kind, body);
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{status}: {answer}");
            assert!(answer.contains("{\"error\":\""), "{answer}");
        }
        assert!(ask(&server, "/lines/cam1/trigger").starts_with("HTTP/1.1 405"));
    }

    #[test]
    fn the_pages_say_what_the_board_says() {
        let folder = tempfile::tempdir().unwrap();
        let picture = folder.path().join("p.png");
        std::fs::write(&picture, "PNG!").unwrap();
        let server = server(true, picture.clone());
        let metrics = ask(&server, "/metrics");
        assert!(metrics.contains("text/plain; version=0.0.4") && metrics.ends_with("inspectd_up 1\n"));
        let health = ask(&server, "/healthz");
        assert!(health.starts_with("HTTP/1.1 200") && health.contains("\"captured\":9"), "{health}");
        assert!(
            ask(&server, "/status").contains("<td>cam1<td>runs<td>9<td>4<td>0<td>2<td>1<td>0<td>1<td>0.500")
        );
        assert!(ask(&server, "/lines/cam1/heatmap.png").ends_with("PNG!"));
        for missing in ["/lines/cam2/heatmap.png", "/lines/..%2f..%2fetc%2fpasswd/heatmap.png", "/x"] {
            assert!(ask(&server, missing).starts_with("HTTP/1.1 404"), "{missing}");
        }
        std::fs::remove_file(picture).unwrap();
        assert!(ask(&server, "/lines/cam1/heatmap.png").starts_with("HTTP/1.1 404"), "gone since");
    }

    #[test]
    fn a_sick_line_is_a_503_and_its_reason_is_escaped_on_the_page() {
        let server = server(false, PathBuf::new());
        assert!(ask(&server, "/healthz").starts_with("HTTP/1.1 503"));
        let page = ask(&server, "/status");
        assert!(page.contains("takes nothing: the disk is &lt;full&gt;"), "{page}");
        assert!(page.contains("no frame for &lt;5 s&gt;") && page.contains("the CPU judges: &lt;lost&gt;"));
    }

    #[test]
    fn an_open_connection_does_not_hold_up_the_end() {
        let server = server(true, PathBuf::new());
        let idle = TcpStream::connect(server.address).unwrap();
        drop(server);
        drop(idle);
    }
}
