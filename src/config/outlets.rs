//! The tables of what goes out over the network: `[mqtt]`, `[line.modbus]`, `[line.webhook]`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::meant::Reader;
use super::raw::Value;

/// Verdicts to a PLC. Addresses count from 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModbusConfig {
    pub address: SocketAddr,
    pub unit: u8,
    /// First of three.
    pub coils: u16,
    /// First of ten.
    pub registers: u16,
    pub timeout: Duration,
    pub heartbeat: Duration,
    pub handshake: bool,
    pub ack_timeout: Duration,
}

/// Verdicts and states of all lines to a broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MqttConfig {
    pub broker: Url,
    pub client_id: String,
    /// Before `/LINE/verdict`.
    pub prefix: String,
    pub username: Option<String>,
    pub password_file: Option<PathBuf>,
    pub ca_file: Option<PathBuf>,
}

/// Which verdicts are sent. A part that is late or unjudged goes with the bad ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OfVerdicts {
    Bad,
    UnsureAndBad,
    All,
}

/// Verdicts to a web server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebhookConfig {
    pub url: Url,
    pub of: OfVerdicts,
    pub timeout: Duration,
    pub token_file: Option<PathBuf>,
}

/// A URL that names no user and no password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    pub text: String,
    pub scheme: String,
    /// Without the brackets of IPv6.
    pub host: String,
    pub port: Option<u16>,
    /// After host and port: empty, or from the first `/` on.
    pub path: String,
}

/// Takes `text` apart. The error goes on from the key's name and does not repeat the text, which may
/// hold a password.
pub(super) fn url(text: &str, schemes: &[&str]) -> Result<Url, String> {
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err(format!("is no URL; it begins with {}://", schemes.join(":// or ")));
    };
    if !schemes.contains(&scheme) {
        return Err(format!("must begin with {}://", schemes.join(":// or ")));
    }
    if rest.chars().any(|c| c.is_control() || c == ' ') {
        return Err("holds blanks or control characters".to_owned());
    }
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    if authority.contains('@') {
        return Err(
            "names a user or a password, which would show in logs; a file of its own holds them".into()
        );
    }
    let (host, port) = match authority.strip_prefix('[').map(|inner| inner.split_once(']')) {
        Some(Some((host, after))) => match host.parse::<std::net::Ipv6Addr>() {
            Ok(_) => (host, after),
            Err(_) => return Err("has no IPv6 address in its brackets".to_owned()),
        },
        Some(None) => return Err("lacks the bracket after the IPv6 address".to_owned()),
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    if host.is_empty() {
        return Err("names no host".to_owned());
    }
    let port = match port.strip_prefix(':') {
        None if port.is_empty() => None,
        Some(port) => match port.parse::<u16>() {
            Ok(n) if n > 0 && port.bytes().all(|b| b.is_ascii_digit()) => Some(n),
            _ => return Err("has a port that is no number from 1 to 65535".to_owned()),
        },
        None => return Err("has something between host and port".to_owned()),
    };
    Ok(Url {
        text: text.to_owned(),
        scheme: scheme.to_owned(),
        host: host.to_owned(),
        port,
        path: path.to_owned(),
    })
}

pub(super) fn modbus(read: &Reader<'_, '_>) -> Option<ModbusConfig> {
    // The table's ranges fit the types; "off" is no address.
    let number = |name| u16::try_from(read.integer(name)).unwrap_or(0);
    Some(ModbusConfig {
        address: read.text("address")?.parse().ok()?,
        unit: u8::try_from(read.integer("unit")).unwrap_or(1),
        coils: number("coils"),
        registers: number("registers"),
        timeout: read.millis("timeout_ms"),
        heartbeat: read.millis("heartbeat_ms"),
        handshake: matches!(read.section.get("handshake").0, Some(Value::Bool(true))),
        ack_timeout: read.millis("ack_timeout_ms"),
    })
}

pub(super) fn mqtt(read: &mut Reader<'_, '_>) -> Option<MqttConfig> {
    let text = |name: &str| read.text(name).unwrap_or("").to_owned();
    let (client_id, prefix) = (text("client_id"), text("prefix"));
    if prefix.contains(['+', '#']) || prefix.starts_with(['$', '/']) || prefix.ends_with('/') {
        let plain = prefix.trim_matches(['+', '#', '$', '/']).replace(['+', '#'], "");
        let plain = if plain.is_empty() { "inspectd".to_owned() } else { plain };
        read.refuse(
            "prefix",
            "a prefix of topics holds no + or #, and neither begins with $ or / nor ends with /".to_owned(),
            &format!("prefix = \"{plain}\""),
        );
    }
    let broker = url(read.text("broker")?, &["mqtt", "mqtts"]).ok()?;
    if !broker.path.is_empty() {
        let port = broker.port.map_or(String::new(), |port| format!(":{port}"));
        read.refuse(
            "broker",
            "a broker has no path".to_owned(),
            &format!("broker = \"{}://{}{port}\"", broker.scheme, broker.host),
        );
    }
    if read.text("password_file").is_some() && read.text("username").is_none() {
        read.refuse(
            "password_file",
            "a password without a `username` is not sent".to_owned(),
            "username = \"inspectd\"",
        );
    }
    Some(MqttConfig {
        broker,
        client_id,
        prefix,
        username: read.text("username").map(str::to_owned),
        password_file: read.path("password_file"),
        ca_file: read.path("ca_file"),
    })
}

pub(super) fn webhook(read: &Reader<'_, '_>) -> Option<WebhookConfig> {
    Some(WebhookConfig {
        url: url(read.text("url")?, &["http", "https"]).ok()?,
        of: match read.text("of") {
            Some("bad") => OfVerdicts::Bad,
            Some("all") => OfVerdicts::All,
            _ => OfVerdicts::UnsureAndBad,
        },
        timeout: read.millis("timeout_ms"),
        token_file: read.path("token_file"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HTTP: &[&str] = &["http", "https"];

    #[test]
    fn urls_are_taken_apart() {
        let of = |text| {
            let url = url(text, HTTP).unwrap();
            (url.host, url.port, url.path)
        };
        assert_eq!(of("http://a"), ("a".into(), None, "".into()));
        assert_eq!(of("https://a.b:81/c?d#e"), ("a.b".into(), Some(81), "/c?d#e".into()));
        assert_eq!(of("http://[::1]:8080/"), ("::1".into(), Some(8080), "/".into()));
        assert_eq!(of("http://a?x=@"), ("a".into(), None, "?x=@".into()));
    }

    #[test]
    fn what_is_no_url_is_refused_without_repeating_it() {
        for text in [
            "host:1883",
            "ftp://secret",
            "http://",
            "http://:80",
            "http://secret:0",
            "http://secret:65536",
            "http://secret:+1",
            "http://me:secret@host",
            "http://secret@host/",
            "http://[::1",
            "http://[x]/",
            "http://[::1]x:1",
            "http://a b",
            "http://a\n",
            "",
        ] {
            let why = url(text, HTTP).expect_err(text);
            assert!(!why.contains("secret"), "{text}: {why}");
        }
    }
}
