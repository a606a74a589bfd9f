//! Verdicts and states of all lines to an MQTT broker, at least once each (QoS 1).
//!
//! | topic | what | retained |
//! |---|---|---|
//! | `PREFIX/LINE/verdict` | the JSON line of a verdict | no |
//! | `PREFIX/LINE/state` | whether the line judges, and if not, why | yes |
//! | `PREFIX/status` | `online`, or `offline` (also as last will) | yes |
//!
//! | constraint | value |
//! |---|---|
//! | verdicts waiting | 1024, and 64 on their way; full: the newest is lost |
//! | a broker that goes and comes back | what waits and what was not acknowledged is sent then, in order |
//! | a broker that does not acknowledge | after 10 s the connection is made anew |
//! | a daemon that hangs or dies | the broker says `offline` after 1.5 keep-alives, 7.5 s |

use std::cell::RefCell;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rumqttc::{
    AsyncClient, ConnectionError, Event, EventLoop, LastWill, MqttOptions, Outgoing, Packet, QoS, Transport,
};
use serde::Serialize;
use tokio::sync::Notify;

use super::OutputError;
use super::outlet::{Backoff, Far, Item, Link, Ticket};
use super::outlets::{LineStatus, Secret, States};
use crate::config::{LineName, MqttConfig};
use crate::telemetry::Loss;

pub(super) const QUEUE: usize = 1024;

/// Messages that may be on their way, not acknowledged.
const WINDOW: usize = 64;
/// Packet identifiers come round after so many: well above [`WINDOW`], so that none is used twice.
const IDENTIFIERS: u16 = 1000;
const KEEP_ALIVE: Duration = Duration::from_secs(5);
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
const ACK_LIMIT: Duration = Duration::from_secs(10);
/// Why a line is sick may quote a driver at length.
const LONGEST_WHY: usize = 1000;
/// Far above any message that is sent, and enough for the few that a broker sends.
const LARGEST_PACKET: usize = 64 << 10;
const SYSTEM_AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// The certificates that a broker is checked by, if it is asked by TLS.
pub(super) fn authorities(config: &MqttConfig) -> Result<Option<Vec<u8>>, OutputError> {
    if config.broker.scheme != "mqtts" {
        return Ok(None);
    }
    let path: PathBuf = config.ca_file.clone().unwrap_or_else(|| Path::new(SYSTEM_AUTHORITIES).to_owned());
    std::fs::read(&path).map(Some).map_err(|source| OutputError::Secret { path, source })
}

/// A message that the broker has not acknowledged.
struct Flight {
    /// `None`: it says what holds now, so it is not sent again later.
    letter: Option<Letter>,
    /// The broker's identifier; 0: not handed over yet.
    id: u16,
    since: Instant,
}

struct Letter {
    topic: String,
    text: Vec<u8>,
    ticket: Ticket,
}

#[derive(Serialize)]
struct StateText<'a> {
    line: &'a str,
    state: LineStatus,
    /// Parts can be judged.
    ready: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<&'a str>,
    since: String,
}

pub(super) async fn run(
    config: &MqttConfig,
    password: Option<&Secret>,
    ca: Option<&[u8]>,
    far: &mut Far,
    link: &mut Link,
    states: &States,
) {
    let options = options(config, password, ca);
    let mut backoff = Backoff::new();
    // Outlives connections.
    let flights = RefCell::new(VecDeque::with_capacity(WINDOW));
    loop {
        let began = Instant::now();
        let room = 4 * WINDOW + 4 * states.lines.len();
        let (client, events) = AsyncClient::new(options.clone(), room);
        let session = Session {
            prefix: &config.prefix,
            client,
            flights: &flights,
            room: Notify::new(),
            gone: Notify::new(),
        };
        match session.run(events, far, link, states).await {
            Ok(()) => return,
            Err(why) => link.down(&why),
        }
        flights.borrow_mut().retain_mut(|flight: &mut Flight| {
            flight.id = 0;
            flight.letter.is_some()
        });
        if far.pause(backoff.pause_after(began.elapsed())).await {
            return;
        }
    }
}

fn options(config: &MqttConfig, password: Option<&Secret>, ca: Option<&[u8]>) -> MqttOptions {
    let port = config.broker.port.unwrap_or(if ca.is_some() { 8883 } else { 1883 });
    let mut options = MqttOptions::new(&config.client_id, &config.broker.host, port);
    options.set_keep_alive(KEEP_ALIVE);
    options.set_inflight(IDENTIFIERS);
    options.set_max_packet_size(LARGEST_PACKET, LARGEST_PACKET);
    let will = LastWill::new(status_topic(&config.prefix), "offline", QoS::AtLeastOnce, true);
    options.set_last_will(will);
    if let Some(name) = &config.username {
        options.set_credentials(name, password.map_or("", Secret::reveal));
    }
    if let Some(ca) = ca {
        // Fails if it is installed already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        options.set_transport(Transport::tls(ca.to_vec(), None, None));
    }
    options
}

fn status_topic(prefix: &str) -> String {
    format!("{prefix}/status")
}

/// One connection.
struct Session<'a> {
    prefix: &'a str,
    client: AsyncClient,
    /// Oldest first.
    flights: &'a RefCell<VecDeque<Flight>>,
    /// A message was acknowledged.
    room: Notify,
    /// The farewell is on the wire.
    gone: Notify,
}

impl Session<'_> {
    /// Until the output is to end (`Ok`) or the connection breaks.
    async fn run(
        &self,
        mut events: EventLoop,
        far: &mut Far,
        link: &mut Link,
        states: &States,
    ) -> Result<(), String> {
        let closing = far.closing();
        tokio::select! {
            connected = tokio::time::timeout(CONNECT_LIMIT, connect(&mut events)) => {
                connected.map_err(|_| "it does not answer".to_owned())??;
            }
            () = closing => return Ok(()),
        }
        link.up();
        let overdue = far.overdue();
        // Both live as long as the connection: neither may be cut off in the middle of something.
        tokio::select! {
            broken = self.pump(&mut events) => Err(broken),
            ended = self.feed(far, states) => ended,
            () = overdue => Ok(()),
        }
    }

    /// Moves packets, and keeps account of what is acknowledged.
    async fn pump(&self, events: &mut EventLoop) -> String {
        loop {
            match events.poll().await {
                Ok(Event::Outgoing(Outgoing::Publish(id))) => {
                    // Messages are handed over in order.
                    let mut flights = self.flights.borrow_mut();
                    if let Some(flight) = flights.iter_mut().find(|flight| flight.id == 0) {
                        flight.id = id;
                    }
                }
                Ok(Event::Incoming(Packet::PubAck(ack))) => {
                    let mut flights = self.flights.borrow_mut();
                    let flight = flights.iter().position(|flight| flight.id == ack.pkid);
                    if let Some(Flight { letter: Some(letter), .. }) =
                        flight.and_then(|at| flights.remove(at))
                    {
                        letter.ticket.sent();
                    }
                    self.room.notify_one();
                }
                Ok(Event::Outgoing(Outgoing::Disconnect)) => self.gone.notify_one(),
                Ok(_) => {}
                Err(error) => return plain(&error),
            }
        }
    }

    /// Hands messages over.
    async fn feed(&self, far: &mut Far, states: &States) -> Result<(), String> {
        let mut changes = states.changes.subscribe();
        let mut told: Vec<Option<(LineStatus, Timestamp)>> = vec![None; states.lines.len()];
        // What was on its way when the last connection broke comes first.
        let left: Vec<Flight> = self.flights.borrow_mut().drain(..).collect();
        for letter in left.into_iter().filter_map(|flight| flight.letter) {
            self.hand_over(letter)?;
        }
        self.say(status_topic(self.prefix), b"online".to_vec())?;
        self.tell_states(states, &mut told)?;
        let mut look = tokio::time::interval(Duration::from_secs(1));
        loop {
            let full = self.flights.borrow().len() >= WINDOW;
            tokio::select! {
                item = far.next(), if !full => match item {
                    None => break,
                    Some(item) => self.send(item)?,
                },
                () = self.room.notified(), if full => {}
                _ = changes.changed() => self.tell_states(states, &mut told)?,
                _ = look.tick() => {
                    // Whoever tells of the lines may have gone silent.
                    self.tell_states(states, &mut told)?;
                    let oldest = self.flights.borrow().front().map(|flight| flight.since.elapsed());
                    if oldest.is_some_and(|age| age > ACK_LIMIT) {
                        return Err("it does not acknowledge what it is sent".to_owned());
                    }
                }
            }
        }
        self.say(status_topic(self.prefix), b"offline".to_vec())?;
        while !self.flights.borrow().is_empty() {
            self.room.notified().await;
        }
        // Then the broker does not publish the will. If it is too busy for this, it does, and says the same.
        if self.client.try_disconnect().is_ok() {
            self.gone.notified().await;
        }
        Ok(())
    }

    fn send(&self, Item { record, ticket }: Item) -> Result<(), String> {
        let mut text = Vec::with_capacity(512);
        if let Err(error) = record.write_json(&mut text) {
            ticket.lost(Loss::Refused, &error);
            return Ok(());
        }
        text.truncate(text.trim_ascii_end().len());
        let topic = format!("{}/{}/verdict", self.prefix, record.rules.line);
        self.hand_over(Letter { topic, text, ticket })
    }

    fn hand_over(&self, letter: Letter) -> Result<(), String> {
        let (topic, text) = (letter.topic.clone(), letter.text.clone());
        self.publish(topic, text, false, Some(letter))
    }

    /// Says what holds now, for whoever comes later too.
    fn say(&self, topic: String, text: Vec<u8>) -> Result<(), String> {
        self.publish(topic, text, true, None)
    }

    fn publish(
        &self,
        topic: String,
        text: Vec<u8>,
        retain: bool,
        letter: Option<Letter>,
    ) -> Result<(), String> {
        self.flights.borrow_mut().push_back(Flight { letter, id: 0, since: Instant::now() });
        let published = self.client.try_publish(topic, QoS::AtLeastOnce, retain, text);
        published.map_err(|_| "too much is on its way to it".to_owned())
    }

    fn tell_states(
        &self,
        states: &States,
        told: &mut [Option<(LineStatus, Timestamp)>],
    ) -> Result<(), String> {
        for ((line, state), told) in states.lines.iter().zip(told) {
            let (now, text) = {
                let state = state.borrow();
                let (status, why) = match state.is_fresh() {
                    true => (state.status, state.why.as_deref()),
                    false => (LineStatus::Sick, Some("the daemon's main thread hangs")),
                };
                let why = why.map(|why| cut(why, LONGEST_WHY));
                ((status, state.since), state_text(line, status, why, state.since))
            };
            if *told != Some(now) {
                *told = Some(now);
                self.say(format!("{}/{line}/state", self.prefix), text)?;
            }
        }
        Ok(())
    }
}

async fn connect(events: &mut EventLoop) -> Result<(), String> {
    loop {
        match events.poll().await {
            Ok(Event::Incoming(Packet::ConnAck(_))) => return Ok(()),
            Ok(_) => {}
            Err(error) => return Err(plain(&error)),
        }
    }
}

fn state_text(line: &LineName, state: LineStatus, why: Option<&str>, since: Timestamp) -> Vec<u8> {
    let (line, ready) = (line.as_str(), state == LineStatus::Running);
    let text = StateText { line, state, ready, why, since: format!("{since:.3}") };
    // Fails for maps with odd keys, which this has none of.
    serde_json::to_vec(&text).unwrap_or_default()
}

fn cut(text: &str, at_most: usize) -> &str {
    let end = (0..=at_most.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    &text[..end]
}

/// Without the library's names, and without what a hostile peer put into a packet.
fn plain(error: &ConnectionError) -> String {
    use rumqttc::ConnectReturnCode as Code;
    use rumqttc::StateError;
    match error {
        ConnectionError::ConnectionRefused(Code::BadUserNamePassword | Code::NotAuthorized) => {
            "it refuses user name or password; look at `username` and `password_file`".to_owned()
        }
        ConnectionError::ConnectionRefused(code) => format!("it refuses the connection: {code:?}"),
        ConnectionError::NotConnAck(_) => "it does not speak MQTT as it should".to_owned(),
        ConnectionError::Io(error) | ConnectionError::MqttState(StateError::Io(error)) => error.to_string(),
        ConnectionError::MqttState(StateError::Deserialization(_)) => {
            "it does not speak MQTT as it should".to_owned()
        }
        ConnectionError::MqttState(StateError::ConnectionAborted) => "it closed the connection".to_owned(),
        ConnectionError::NetworkTimeout | ConnectionError::FlushTimeout => "it does not answer".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_json_that_says_whether_and_why() {
        let since = "2026-11-24T09:30:45.123Z".parse().unwrap();
        let line = LineName::new("cam1");
        let text = |state, why| String::from_utf8(state_text(&line, state, why, since)).unwrap();
        assert_eq!(
            text(LineStatus::Sick, Some("no frame for 6 s")),
            "{\"line\":\"cam1\",\"state\":\"sick\",\"ready\":false,\"why\":\"no frame for 6 s\",\
             \"since\":\"2026-11-24T09:30:45.123Z\"}"
        );
        assert!(text(LineStatus::Running, None).contains("\"ready\":true,\"since\""));
    }

    #[test]
    fn long_reasons_are_cut_between_characters() {
        assert_eq!(cut("äöü", 3), "ä");
        assert_eq!(cut("abc", 9), "abc");
        assert_eq!(cut("ä", 0), "");
    }
}
