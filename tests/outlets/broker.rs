//! What those see who listen at a broker.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use serde_json::Value;

use super::http::get;
use super::{CAMERA, Process, Site, assert_balanced, free_port, metric, wait, wait_for};

/// A broker, and a door to it that the test opens and closes.
struct Broker {
    port: u16,
    config: PathBuf,
    /// What a client must say beside the port.
    login: Vec<String>,
    server: Option<Process>,
    door: u16,
    open: Arc<AtomicBool>,
}

impl Broker {
    fn start(site: &Site) -> Self {
        Self::start_with(site, "allow_anonymous true", Vec::new())
    }

    fn start_with(site: &Site, settings: &str, login: Vec<String>) -> Self {
        let (port, config) = (free_port(), site.path("mosquitto.conf"));
        // As root it would become another user, who cannot read the test's files.
        let text = format!("user root\nlistener {port} 127.0.0.1\npersistence false\n{settings}\n");
        std::fs::write(&config, text).unwrap();
        let open = Arc::new(AtomicBool::new(true));
        let door = relay(port, Arc::clone(&open));
        let mut broker = Broker { port, config, login, server: None, door, open };
        broker.run();
        broker
    }

    fn run(&mut self) {
        let mut mosquitto = Command::new("mosquitto");
        mosquitto.arg("-c").arg(&self.config).stderr(Stdio::null()).stdout(Stdio::null());
        self.server = Some(Process::start(&mut mosquitto, "mosquitto"));
        wait_for("the broker", || TcpStream::connect(("127.0.0.1", self.port)).is_ok());
    }

    fn kill(&mut self) {
        self.server.take().unwrap().kill();
    }

    /// Listens to all topics: `retained topic text`, in the order in which they came.
    fn listen(&self) -> Ears {
        let mut sub = Command::new("mosquitto_sub");
        sub.args(&self.login).args([
            "-p",
            &self.port.to_string(),
            "-t",
            "plant/#",
            "-t",
            "ready",
            "-q",
            "1",
            "-F",
            "%r %t %p",
        ]);
        let mut process = Process::start(sub.stdout(Stdio::piped()), "mosquitto_sub");
        let heard = Arc::new(Mutex::new(Vec::new()));
        let (out, hears) = (process.0.stdout.take().unwrap(), Arc::clone(&heard));
        std::thread::spawn(move || {
            BufReader::new(out)
                .lines()
                .map_while(Result::ok)
                .for_each(|line| hears.lock().unwrap().push(line));
        });
        let ears = Ears { heard, _process: process };
        // It listens once it hears what the test itself says.
        wait_for("its own message", || {
            let mut publish = Command::new("mosquitto_pub");
            publish.args(&self.login).args(["-p", &self.port.to_string(), "-t", "ready", "-m", "yes"]);
            assert!(publish.status().unwrap().success());
            ears.heard.lock().unwrap().iter().any(|line| line == "0 ready yes")
        });
        ears
    }
}

struct Ears {
    heard: Arc<Mutex<Vec<String>>>,
    _process: Process,
}

impl Ears {
    fn of(&self, topic: &str) -> Vec<String> {
        let heard = self.heard.lock().unwrap();
        heard
            .iter()
            .filter_map(|line| line.split_once(&format!(" {topic} ")))
            .map(|(_, text)| text.to_owned())
            .collect()
    }

    fn sequences(&self) -> BTreeSet<u64> {
        let of = |text: String| serde_json::from_str::<Value>(&text).unwrap()["sequence"].as_u64().unwrap();
        self.of("plant/cam/verdict").into_iter().map(of).collect()
    }
}

/// Passes connections on to `port` while `open`.
fn relay(port: u16, open: Arc<AtomicBool>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let own = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for near in listener.incoming().flatten() {
            let far = TcpStream::connect(("127.0.0.1", port));
            let (true, Ok(far)) = (open.load(SeqCst), far) else { continue };
            for (mut from, mut to) in [(near.try_clone().unwrap(), far.try_clone().unwrap()), (far, near)] {
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(std::net::Shutdown::Both);
                });
            }
        }
    });
    own
}

#[test]
fn a_broker_that_dies_and_comes_back_gets_every_verdict_and_knows_who_is_there() {
    let site = Site::new();
    let mut broker = Broker::start(&site);
    let first = broker.listen();
    let mqtt = format!("[mqtt]\nbroker = \"mqtt://127.0.0.1:{}\"\nprefix = \"plant\"\n", broker.door);
    site.configure(&mqtt, CAMERA, "");
    let (daemon, address) = site.start();
    wait_for("verdicts", || first.sequences().len() > 20);
    assert_eq!(first.of("plant/status"), ["online"]);
    let states = || first.of("plant/cam/state");
    wait_for("a state", || {
        states().last().is_some_and(|text| text.contains("\"state\":\"running\",\"ready\":true"))
    });

    broker.open.store(false, SeqCst);
    broker.kill();
    wait_for("down", || metric(&get(&address, "/metrics"), "output_up", "mqtt") == 0);
    let waiting = || metric(&get(&address, "/metrics"), "queue_depth", "queue=\"mqtt\"");
    wait_for("a queue", || waiting() > 20);
    broker.run();
    let second = broker.listen();
    broker.open.store(true, SeqCst);
    wait_for("all that waited", || {
        metric(&get(&address, "/metrics"), "output_up", "mqtt") == 1 && waiting() < 5
    });
    assert_balanced(&address, "mqtt");
    assert_eq!(metric(&get(&address, "/metrics"), "outputs_failed_total", "mqtt"), 0);
    assert_eq!(metric(&get(&address, "/metrics"), "frames_dropped_total", "cam"), 0);

    let mut daemon = daemon;
    daemon.signal("TERM");
    assert_eq!(wait("the end", || daemon.0.try_wait().unwrap()).code(), Some(0), "{}", site.log());
    wait_for("offline", || second.of("plant/status") == ["online", "offline"]);
    assert!(second.of("plant/cam/state").last().unwrap().contains("\"state\":\"stopping\",\"ready\":false"));
    let all: BTreeSet<u64> = site.verdicts().iter().map(|v| v["sequence"].as_u64().unwrap()).collect();
    let heard: BTreeSet<u64> = first.sequences().union(&second.sequences()).copied().collect();
    assert_eq!(heard, all, "none was lost");
    let text: Value = serde_json::from_str(&second.of("plant/cam/verdict")[0]).unwrap();
    assert_eq!(site.verdicts().iter().find(|v| v["sequence"] == text["sequence"]), Some(&text));
    let log = site.log();
    assert_eq!(log.matches("The MQTT broker takes no verdicts").count(), 1, "{log}");

    // Whoever comes later is told what holds: it is retained.
    let third = broker.listen();
    wait_for("what is retained", || third.of("plant/status") == ["offline"]);
    assert!(third.of("plant/cam/verdict").is_empty());
    // A daemon that dies says nothing; the broker does.
    let (daemon, _) = site.start();
    wait_for("online", || third.of("plant/status") == ["offline", "online"]);
    daemon.kill();
    wait_for("the will", || third.of("plant/status") == ["offline", "online", "offline"]);
}

/// A broker's certificate and the authority that vouches for it.
fn certificates(site: &Site) {
    let openssl = |arguments: &str| {
        let mut openssl = Command::new("openssl");
        openssl.args(arguments.split_whitespace()).current_dir(site.folder.path()).stderr(Stdio::null());
        assert!(openssl.status().unwrap().success(), "openssl {arguments}");
    };
    std::fs::write(site.path("names"), "subjectAltName=DNS:localhost,IP:127.0.0.1\n").unwrap();
    openssl("req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=plant");
    openssl("req -newkey rsa:2048 -nodes -keyout key.pem -out request -subj /CN=localhost");
    openssl(
        "x509 -req -in request -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out cert.pem",
    );
}

#[test]
fn tls_and_a_password_are_for_those_who_have_them_and_a_reload_reads_the_password_anew() {
    let site = Site::new();
    certificates(&site);
    let path = |name: &str| site.path(name).display().to_string();
    let passwords = ["-b", "-c", &path("passwords"), "line4", "gehe1m"];
    assert!(Command::new("mosquitto_passwd").args(passwords).status().unwrap().success());
    let settings = format!(
        "certfile {}\nkeyfile {}\npassword_file {}\nallow_anonymous false",
        path("cert.pem"),
        path("key.pem"),
        path("passwords")
    );
    let login = ["--cafile", &path("ca.pem"), "-u", "line4", "-P", "gehe1m"].map(str::to_owned).to_vec();
    let broker = Broker::start_with(&site, &settings, login);
    let ears = broker.listen();
    std::fs::write(site.path("password"), "wr0ng\n").unwrap();
    let mqtt = format!(
        "[mqtt]\nbroker = \"mqtts://localhost:{}\"\nprefix = \"plant\"\nusername = \"line4\"\n\
         password_file = \"password\"\nca_file = \"ca.pem\"\n",
        broker.door
    );
    site.configure(&mqtt, CAMERA, "");
    let (daemon, address) = site.start();
    wait_for("why not", || site.log().contains("look at `username` and `password_file`"));
    assert_eq!(metric(&get(&address, "/metrics"), "output_up", "mqtt"), 0);
    assert!(ears.of("plant/status").is_empty());
    std::fs::write(site.path("password"), "gehe1m\n").unwrap();
    daemon.signal("HUP");
    wait_for("verdicts", || ears.sequences().len() > 5);
    assert_eq!(metric(&get(&address, "/metrics"), "output_up", "mqtt"), 1);
    // Whom nobody vouches for gets nothing, not even the password.
    site.configure(&mqtt.replace("\"ca.pem", "\"/etc/ssl/certs/ca-certificates.crt"), CAMERA, "");
    daemon.signal("HUP");
    wait_for("offline", || ears.of("plant/status") == ["online", "offline"]);
    wait_for("why not", || site.log().contains("invalid peer certificate"));
    assert!(!site.log().contains("gehe1m") && !get(&address, "/metrics").contains("gehe1m"));
}
