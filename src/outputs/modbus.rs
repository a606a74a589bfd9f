//! Verdicts to a PLC by Modbus/TCP. What the PLC sees, and what it must do with it, is in
//! `docs/outputs.md`.
//!
//! Each result is two requests: the coils, then all registers in one write, the sequence among them. A PLC
//! that acts when the sequence has changed therefore finds coils and registers of the same part.
//!
//! | constraint | value |
//! |---|---|
//! | results waiting | 8; full: the oldest is lost |
//! | everything but good | OK off, NG on |
//! | the line cannot judge, the daemon ends | READY off, OK off, NG on |
//! | the daemon hangs or dies | the heartbeat stands still |
//! | results of the time without a connection | lost: a part that has passed is not to be decided on late |

use std::fmt;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_modbus::client::{Client, Context, tcp};
use tokio_modbus::{Request, Response, Slave};

use super::Record;
use super::outlet::{Backoff, Far, Item, Link, Ticket};
use super::outlets::{LineState, LineStatus};
use crate::config::ModbusConfig;
use crate::model::Verdict;
use crate::telemetry::Loss;

pub(super) const QUEUE: usize = 8;

/// How often an acknowledgement is looked for: about the cycle of a PLC.
const LOOK: Duration = Duration::from_millis(10);
/// A verdict says for so long that the line judges, until its state is told.
const PROOF: Duration = Duration::from_secs(2);
/// An acknowledgement is waited for no longer when the output is to end.
const LAST_LOOK: Duration = Duration::from_millis(1000);

/// Registers: offsets from the first.
const HEARTBEAT: u16 = 7;
const ACK: u16 = 8;
/// In the acknowledgement registers: the result has not been read yet.
const UNREAD: u32 = u32::MAX;

struct Trouble {
    loss: Loss,
    why: String,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

pub(super) async fn run(
    config: &ModbusConfig,
    far: &mut Far,
    link: &mut Link,
    line: watch::Receiver<LineState>,
) {
    let mut backoff = Backoff::new();
    let mut heartbeat = 0;
    loop {
        let (trouble, held) = match connect(config).await {
            Err(trouble) => (trouble, Duration::ZERO),
            Ok(context) => {
                let began = Instant::now();
                let line = line.clone();
                let mut plc =
                    Plc { context, config, line, heartbeat, ready: false, proved: None, unread: None };
                match plc.serve(far, link).await {
                    Ok(()) => return,
                    Err(trouble) => {
                        if let Some(unread) = plc.unread.take() {
                            unread.ticket.lost(trouble.loss, &trouble);
                        }
                        heartbeat = plc.heartbeat;
                        (trouble, began.elapsed())
                    }
                }
            }
        };
        link.down(&trouble);
        if far.lose(backoff.pause_after(held), &trouble.why).await {
            return;
        }
    }
}

async fn connect(config: &ModbusConfig) -> Result<Context, Trouble> {
    let stream = match timeout(config.timeout, TcpStream::connect(config.address)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(Trouble { loss: Loss::Link, why: error.to_string() }),
        Err(_) => return Err(Trouble { loss: Loss::Timeout, why: "it cannot be reached".to_owned() }),
    };
    // Small requests that wait for an answer: nothing is won by collecting them.
    stream.set_nodelay(true).map_err(|error| Trouble { loss: Loss::Link, why: error.to_string() })?;
    Ok(tcp::attach_slave(stream, Slave(config.unit)))
}

/// A PLC that is connected.
struct Plc<'a> {
    context: Context,
    config: &'a ModbusConfig,
    line: watch::Receiver<LineState>,
    heartbeat: u16,
    /// As the coil says.
    ready: bool,
    proved: Option<Instant>,
    unread: Option<Unread>,
}

/// A result that was written and is to be acknowledged.
struct Unread {
    ticket: Ticket,
    sequence: u32,
    until: Instant,
}

impl Plc<'_> {
    /// Until the output is to end, or the connection is of no use any more.
    async fn serve(&mut self, far: &mut Far, link: &mut Link) -> Result<(), Trouble> {
        let blank = self.blank().await;
        took(link, blank)?;
        let mut beat_at = Instant::now();
        loop {
            let now = Instant::now();
            if now >= beat_at {
                beat_at = now + self.config.heartbeat;
                let beat = self.beat().await;
                went_on(link, beat)?;
            }
            if self.unread.is_some() {
                if far.is_closed()
                    && let Some(unread) = &mut self.unread
                {
                    unread.until = unread.until.min(now + LAST_LOOK);
                }
                let looked = self.look().await;
                went_on(link, looked)?;
            }
            let wake = match self.unread {
                Some(_) => beat_at.min(Instant::now() + LOOK),
                None => beat_at,
            };
            tokio::select! {
                item = far.next(), if self.unread.is_none() => match item {
                    None => break,
                    Some(item) => {
                        let item = if self.config.handshake || far.is_closed() { newest(item, far) } else { item };
                        let shown = self.show(item).await;
                        took(link, shown)?;
                    }
                },
                // Whoever tells has gone: then the state grows old, which is seen with the next beat.
                Ok(()) = self.line.changed() => beat_at = Instant::now(),
                () = sleep_until(wake) => {}
            }
        }
        self.coils(false, false).await
    }

    /// What is shown before the first result: nothing is known.
    async fn blank(&mut self) -> Result<(), Trouble> {
        self.ready = self.can_judge();
        self.coils(false, self.ready).await?;
        let words = words(0, None, None, self.heartbeat);
        self.write(self.config.registers, &words, "the registers").await
    }

    async fn show(&mut self, Item { record, ticket }: Item) -> Result<(), Trouble> {
        let shown = self.show_record(&record).await;
        let sequence = record.sequence as u32;
        // Its rules hold this output: they must not be held while an acknowledgement is waited for.
        drop(record);
        match shown {
            Err(trouble) => {
                ticket.lost(trouble.loss, &trouble);
                return Err(trouble);
            }
            Ok(()) if self.config.handshake => {
                let until = Instant::now() + self.config.ack_timeout;
                self.unread = Some(Unread { ticket, sequence, until });
            }
            Ok(()) => ticket.sent(),
        }
        Ok(())
    }

    async fn show_record(&mut self, record: &Record) -> Result<(), Trouble> {
        if record.score.is_some() {
            self.proved = Some(Instant::now());
        }
        self.ready = self.can_judge();
        self.coils(record.verdict == Verdict::Good, self.ready).await?;
        let words = words(record.sequence as u32, Some(record.verdict), record.score, self.heartbeat);
        let words = if self.config.handshake { &words[..] } else { &words[..ACK.into()] };
        self.write(self.config.registers, words, "the registers").await
    }

    /// The heartbeat goes on, and READY follows the line.
    async fn beat(&mut self) -> Result<(), Trouble> {
        let ready = self.can_judge();
        if ready != self.ready {
            self.ready = ready;
            self.coils(false, ready).await?;
        }
        if !self.line.borrow().is_fresh() {
            // Whoever minds the lines hangs. That is for the PLC to see.
            return Ok(());
        }
        self.heartbeat = self.heartbeat.wrapping_add(1);
        self.write(self.config.registers.saturating_add(HEARTBEAT), &[self.heartbeat], "the heartbeat").await
    }

    fn can_judge(&self) -> bool {
        let line = self.line.borrow();
        let proved = line.is_fresh()
            && matches!(line.status, LineStatus::Starting | LineStatus::Sick)
            && self.proved.is_some_and(|at| at.elapsed() < PROOF);
        line.is_ready() || proved
    }

    /// Whether the PLC has acknowledged, or has had the time to.
    async fn look(&mut self) -> Result<(), Trouble> {
        let from = self.config.registers.saturating_add(ACK);
        let answer = self.call(Request::ReadHoldingRegisters(from, 2), "the acknowledgement").await;
        let Some(unread) = self.unread.take() else { return Ok(()) };
        match answer {
            Ok(Response::ReadHoldingRegisters(words)) if words.len() == 2 => {
                if two(words[0], words[1]) == unread.sequence {
                    unread.ticket.sent();
                } else if Instant::now() >= unread.until {
                    unread.ticket.lost(Loss::Unacknowledged, &"the PLC did not acknowledge it in time");
                } else {
                    self.unread = Some(unread);
                }
                Ok(())
            }
            Ok(_) => {
                let why = "it answers a question for two registers with something else".to_owned();
                unread.ticket.lost(Loss::Link, &why);
                Err(Trouble { loss: Loss::Link, why })
            }
            Err(trouble) => {
                unread.ticket.lost(trouble.loss, &trouble);
                Err(trouble)
            }
        }
    }

    async fn coils(&mut self, ok: bool, ready: bool) -> Result<(), Trouble> {
        let coils = [ok, !ok, ready];
        self.call(Request::WriteMultipleCoils(self.config.coils, coils[..].into()), "the coils").await?;
        Ok(())
    }

    async fn write(&mut self, from: u16, words: &[u16], what: &str) -> Result<(), Trouble> {
        self.call(Request::WriteMultipleRegisters(from, words.into()), what).await?;
        Ok(())
    }

    async fn call(&mut self, request: Request<'_>, what: &str) -> Result<Response, Trouble> {
        let limit = self.config.timeout;
        let link = |why| Trouble { loss: Loss::Link, why };
        match timeout(limit, self.context.call(request)).await {
            Ok(Ok(Ok(response))) => Ok(response),
            Ok(Ok(Err(exception))) => {
                let why = format!("it refuses {what}: {exception}; look at `coils`, `registers` and `unit`");
                Err(Trouble { loss: Loss::Refused, why })
            }
            Ok(Err(tokio_modbus::Error::Transport(error))) => Err(link(match error.raw_os_error() {
                Some(0) => "it closed the connection".to_owned(),
                _ => error.to_string(),
            })),
            Ok(Err(tokio_modbus::Error::Protocol(_))) => Err(link(
                "it does not speak Modbus/TCP as it should: the answer is to another question".to_owned(),
            )),
            Err(_) => {
                Err(Trouble { loss: Loss::Timeout, why: format!("it did not answer within {limit:?}") })
            }
        }
    }
}

/// The last of those that wait. A result that the PLC would read when a newer part is before it is worse
/// than none.
fn newest(first: Item, far: &Far) -> Item {
    let mut item = first;
    while let Some(newer) = far.try_next() {
        item.ticket.lost(Loss::Superseded, &"the PLC acknowledges more slowly than the line judges");
        item = newer;
    }
    item
}

/// After a result: the PLC takes results, or refuses them and is kept all the same.
fn took(link: &mut Link, outcome: Result<(), Trouble>) -> Result<(), Trouble> {
    if outcome.is_ok() {
        link.up();
    }
    went_on(link, outcome)
}

/// After anything else: what is refused is told, and only what breaks the connection ends it.
fn went_on(link: &mut Link, outcome: Result<(), Trouble>) -> Result<(), Trouble> {
    match outcome {
        Err(trouble) if trouble.loss == Loss::Refused => {
            link.down(&trouble);
            Ok(())
        }
        outcome => outcome,
    }
}

/// The registers of a result. Numbers of 32 bits are two registers, the high one first.
fn words(sequence: u32, verdict: Option<Verdict>, score: Option<f32>, heartbeat: u16) -> [u16; 10] {
    let code = match verdict {
        None => 0,
        Some(Verdict::Good) => 1,
        Some(Verdict::Unsure) => 2,
        Some(Verdict::Bad) => 3,
        Some(Verdict::Late) => 4,
        Some(Verdict::Unjudged) => 5,
    };
    let [s1, s0] = halves(sequence);
    let [f1, f0] = halves(score.unwrap_or(f32::NAN).to_bits());
    let [u1, u0] = halves(UNREAD);
    // No part has a number of its own yet.
    let [p1, p0] = [0, 0];
    [s1, s0, code, f1, f0, p1, p0, heartbeat, u1, u0]
}

fn halves(n: u32) -> [u16; 2] {
    [(n >> 16) as u16, n as u16]
}

fn two(high: u16, low: u16) -> u32 {
    u32::from(high) << 16 | u32::from(low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_register_map_is_the_documented_one() {
        assert_eq!(
            words(0x0001_0002, Some(Verdict::Bad), Some(1.5), 7),
            [1, 2, 3, 0x3fc0, 0, 0, 0, 7, 0xffff, 0xffff]
        );
        assert_eq!(words(0, None, None, 0), [0, 0, 0, 0x7fc0, 0, 0, 0, 0, 0xffff, 0xffff]);
        let codes = Verdict::ALL.map(|verdict| words(0, Some(verdict), None, 0)[2]);
        assert_eq!(codes, [1, 2, 3, 4, 5]);
        assert_eq!(two(0x0001, 0x0002), 0x0001_0002);
    }
}
