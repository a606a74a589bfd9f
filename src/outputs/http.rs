//! `/metrics`, `/healthz` and the status page, on one thread of its own.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use serde::Serialize;

/// What is shown. Asked on the HTTP thread; must not wait.
pub trait Board: Send + Sync + 'static {
    /// Prometheus' text format.
    fn scrape(&self) -> String;
    fn health(&self) -> Health;
    /// The newest picture of a line.
    fn heatmap(&self, line: &str) -> Option<PathBuf>;
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

    pub fn start(listener: TcpListener, board: Arc<dyn Board>) -> io::Result<Self> {
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
                    served = axum::serve(listener, router(board)).into_future() => {
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

type Shown = State<Arc<dyn Board>>;

fn router(board: Arc<dyn Board>) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/metrics", get(metrics))
        .route("/healthz", get(health))
        .route("/lines/{line}/heatmap.png", get(heatmap))
        .with_state(board)
}

async fn metrics(State(board): Shown) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], board.scrape())
}

async fn health(State(board): Shown) -> Response {
    let health = board.health();
    let status = if health.ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, [(header::CACHE_CONTROL, "no-store")], axum::Json(health)).into_response()
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

    struct Fake {
        ok: bool,
        picture: PathBuf,
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

        fn heatmap(&self, line: &str) -> Option<PathBuf> {
            (line == "cam1").then(|| self.picture.clone())
        }
    }

    fn ask(server: &Server, path: &str) -> String {
        let mut stream = TcpStream::connect(server.address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }

    fn server(ok: bool, picture: PathBuf) -> Server {
        let listener = Server::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        Server::start(listener, Arc::new(Fake { ok, picture })).unwrap()
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
        assert!(ask(&server, "/").contains("<td>cam1<td>runs<td>9<td>4<td>0<td>2<td>1<td>0<td>1<td>0.500"));
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
        let page = ask(&server, "/");
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
