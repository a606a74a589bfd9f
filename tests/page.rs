//! The operator's page in a real browser, on a real daemon with a real stream. `SCREENSHOTS=DIR` keeps pictures.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

mod browser;
mod daemon;
mod untaught;

use browser::Browser;

const TOKEN: &str = "a token of the test, long enough";

struct Daemon {
    child: Child,
    folder: tempfile::TempDir,
    address: String,
}

impl Daemon {
    /// Two lines that judge moving pictures of GStreamer's; one calls everything bad.
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        untaught::model().save(&path("part.safetensors")).unwrap();
        std::fs::write(path("token"), TOKEN).unwrap();
        let line = |name: &str, pattern: &str, bad: f32| {
            format!(
                "[[line]]\nname = \"{name}\"\nmodel = \"part.safetensors\"\n\
                 source = \"videotestsrc is-live=true pattern={pattern} ! video/x-raw,format=RGB,width=320,height=240,framerate=5/1\"\n\
                 [line.outputs]\nverdicts = \"off\"\n[line.thresholds]\nunsure = {}\nbad = {bad}\n",
                bad - 1.0
            )
        };
        let config = format!(
            "[daemon]\nhttp = \"127.0.0.1:0\"\nstate_dir = \"state\"\ntoken_file = \"token\"\n\
             [archive]\nfolder = \"archive\"\n{}{}",
            line("press-1", "ball", -1e6),
            line("press-2", "smpte", 1e6)
        );
        std::fs::write(path("c.toml"), config).unwrap();
        let log = std::fs::File::create(path("log")).unwrap();
        let mut serve = daemon::inspectd(&["serve"], &path("c.toml"));
        let child = serve.stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let mut daemon = Daemon { child, folder, address: String::new() };
        let limit = Instant::now() + Duration::from_secs(120);
        while daemon.address.is_empty() {
            assert!(Instant::now() < limit, "the daemon never listened: {}", daemon.log());
            let text = std::fs::read_to_string(daemon.folder.path().join("state/http_address"));
            daemon.address = text.unwrap_or_default().trim().to_owned();
            std::thread::sleep(Duration::from_millis(10));
        }
        daemon
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Already ended, if it failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn keep(browser: &Browser, name: &str) {
    if let Some(folder) = std::env::var_os("SCREENSHOTS").map(PathBuf::from) {
        browser.screenshot(&folder.join(Path::new(name).with_extension("png")));
    }
}

#[test]
fn an_operator_watches_the_lines_and_reviews_a_reject() {
    let daemon = Daemon::start();
    let browser = Browser::open(1280, 1000);
    browser.go(&format!("http://{}/", daemon.address));

    // Verdicts, scores and counters as they come.
    browser.until("both lines", "return document.querySelectorAll('section.line').length === 2");
    let verdict = |n: u32| format!("section.line:nth-of-type({n}) .verdict");
    browser
        .until("a bad part", &format!("return document.querySelector('{}').innerText === 'BAD'", verdict(1)));
    browser.until(
        "a good part",
        &format!("return document.querySelector('{}').innerText === 'GOOD'", verdict(2)),
    );
    browser.until(
        "counters",
        "return [...document.querySelectorAll('dl.counts dd')].some((dd) => Number(dd.innerText) > 3)",
    );
    // The newest picture, under its heatmap and without.
    let shown = |heat: u8| {
        format!(
            "const image = document.querySelector('section.line img.live');
             return image.complete && image.naturalWidth === 320 && image.src.includes('heat={heat}')"
        )
    };
    browser.until("a live picture", &shown(1));
    browser.until("history", "return document.querySelector('canvas.history').width > 0");
    keep(&browser, "lines");
    browser.click("section.line .heat");
    browser.until("the picture without its heatmap", &shown(0));

    // What other thresholds would have done: all of them bad at the far left.
    browser.click("section.line:nth-of-type(2) summary");
    browser.run(
        "for (const slider of document.querySelectorAll('section.line:nth-of-type(2) input[type=range]')) {
            slider.value = 0;
            slider.dispatchEvent(new Event('input'));
        }",
    );
    browser.until(
        "all parts bad",
        "const cells = document.querySelectorAll('section.line:nth-of-type(2) .what-if tr:last-child td');
         return cells.length === 4 && cells[1].innerText === '0' && Number(cells[3].innerText) > 3",
    );
    assert!(browser.text("section.line:nth-of-type(2) .snippet").contains("[line.thresholds]"));

    // The gallery of rejects; without the token nothing can be changed.
    browser.click("nav button[data-view=rejects]");
    browser.until(
        "rejects with pictures",
        "const image = document.querySelector('#gallery img'); return image && image.complete && image.naturalWidth > 0",
    );
    keep(&browser, "rejects");
    browser.click("#gallery .tile");
    browser.until("the part", "return document.querySelector('#part').open");
    browser.click("[data-review=confirm]");
    browser.until(
        "a refusal",
        "return document.querySelector('#part-told').innerText.includes('Authorization')",
    );
    browser.click("#part-close");
    browser.click("#unlock");
    browser.answer(TOKEN);
    browser.click("#gallery .tile");
    browser.click("[data-review=false_alarm]");
    browser.until("saved", "return document.querySelector('#part-told').innerText === 'Saved.'");
    keep(&browser, "part");
    browser.click("#part-close");
    browser.run(
        "const filter = document.querySelector('#filter');
         filter.review.value = 'false_alarm';
         filter.dispatchEvent(new Event('change'));",
    );
    let one = "const tiles = document.querySelectorAll('#gallery .tile');
        return tiles.length === 1 && tiles[0].innerText.includes('false alarm')";
    browser.until("the reviewed part alone", one);

    // Nothing was asked of anybody else, no script failed; the refused review is the one complaint.
    let complaints: Vec<String> =
        browser.complaints().into_iter().filter(|c| !c.contains("401") && !c.contains("live.jpg")).collect();
    assert!(complaints.is_empty(), "{complaints:?}");
    let elsewhere = browser.run(
        "return performance.getEntriesByType('resource').map((entry) => new URL(entry.name).host)
            .filter((host) => host !== location.host)",
    );
    assert_eq!(elsewhere.as_array().unwrap().len(), 0, "{elsewhere}");
    assert!(!daemon.log().contains("ERROR"), "{}", daemon.log());
}

#[test]
fn the_page_fits_a_tablet_and_says_when_the_daemon_is_away() {
    let mut daemon = Daemon::start();
    let browser = Browser::open(768, 1024);
    browser.go(&format!("http://{}/", daemon.address));
    browser.until("both lines", "return document.querySelectorAll('section.line').length === 2");
    let wide =
        browser.run("return document.documentElement.scrollWidth - document.documentElement.clientWidth");
    assert!(wide.as_i64().unwrap() <= 0, "the page is {wide} pixels wider than the tablet");
    let small = browser.run(
        "return [...document.querySelectorAll('button, select')].filter((node) => node.offsetParent)
            .filter((node) => node.offsetHeight < 44).map((node) => node.innerText)",
    );
    assert_eq!(small.as_array().unwrap().len(), 0, "too small for a finger: {small}");
    keep(&browser, "tablet");
    daemon.child.kill().unwrap();
    browser.until("that it is away", "return document.querySelector('#state').innerText === 'daemon away'");
}
