//! Verdicts to a web server: one POST of the JSON line each, in order.
//!
//! | constraint | value |
//! |---|---|
//! | verdicts waiting | 256; full: the newest is lost |
//! | tries | 3, with pauses of 0.2 and 0.4 s; then lost |
//! | not tried again | answers 3xx and 4xx but 408 and 429: the server has understood and declined |
//! | redirects | not followed: the token and the verdict are for the host that was named |
//! | proxies of the environment | not used: no network but what the configuration names |

use std::time::Duration;

use tokio::runtime::Runtime;
use ureq::Agent;

use super::outlet::{Backoff, END_LIMIT, Far, Item, Link};
use super::outlets::Secret;
use crate::config::WebhookConfig;
use crate::telemetry::Loss;

pub(super) const QUEUE: usize = 256;
const TRIES: u32 = 3;
/// Longer answers are left unread, which costs a new connection.
const LONGEST_ANSWER: u64 = 16 << 10;

struct Trouble {
    loss: Loss,
    why: String,
    again: bool,
}

pub(super) fn run(
    runtime: &Runtime,
    config: &WebhookConfig,
    token: Option<&Secret>,
    far: &mut Far,
    link: &mut Link,
) {
    link.presume_up();
    let agent = agent(config.timeout);
    let authorization = token.map(|token| format!("Bearer {}", token.reveal()));
    let mut text = Vec::with_capacity(1024);
    let mut end = None;
    while let Some(Item { record, ticket }) = runtime.block_on(far.next()) {
        if far.is_closed()
            && *end.get_or_insert_with(|| std::time::Instant::now() + END_LIMIT) < std::time::Instant::now()
        {
            return;
        }
        text.clear();
        if let Err(error) = record.write_json(&mut text) {
            ticket.lost(Loss::Refused, &error);
            continue;
        }
        text.truncate(text.trim_ascii_end().len());
        // Its rules hold this output: whoever waits for the network must not hold them.
        drop(record);
        let mut backoff = Backoff::new();
        let mut tries = 0;
        let outcome = loop {
            tries += 1;
            match post(&agent, config, authorization.as_deref(), &text) {
                Err(Trouble { again: true, .. })
                    if tries < TRIES && !runtime.block_on(far.pause(backoff.pause_after(Duration::ZERO))) => {
                }
                outcome => break outcome,
            }
        };
        match outcome {
            Ok(()) => {
                link.up();
                ticket.sent();
            }
            Err(Trouble { loss, why, .. }) => {
                link.down(&why);
                ticket.lost(loss, &why);
            }
        }
    }
}

fn agent(timeout: Duration) -> Agent {
    Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .proxy(None)
        .timeout_global(Some(timeout))
        .user_agent(concat!("inspectd/", env!("CARGO_PKG_VERSION")))
        .build()
        .new_agent()
}

fn post(
    agent: &Agent,
    config: &WebhookConfig,
    authorization: Option<&str>,
    text: &[u8],
) -> Result<(), Trouble> {
    let mut request = agent.post(&config.url.text).content_type("application/json");
    if let Some(authorization) = authorization {
        request = request.header("Authorization", authorization);
    }
    let mut answer = request.send(text).map_err(|error| {
        let loss = match error {
            ureq::Error::Timeout(_) => Loss::Timeout,
            _ => Loss::Link,
        };
        Trouble { loss, why: error.to_string(), again: true }
    })?;
    let status = answer.status();
    // A connection whose answer was read can be used again. What it says is of no interest.
    let _ = answer.body_mut().with_config().limit(LONGEST_ANSWER).read_to_vec();
    if status.is_success() {
        return Ok(());
    }
    let why = match status.as_u16() {
        300..400 => {
            format!("it answers {status}, and redirects are not followed: write the final address into `url`")
        }
        _ => format!("it answers {status}"),
    };
    let again = status.is_server_error() || matches!(status.as_u16(), 408 | 429);
    Err(Trouble { loss: Loss::Refused, why, again })
}
