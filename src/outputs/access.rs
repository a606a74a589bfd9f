//! Who may change something over HTTP. Reading is free for all that reach the port; a change needs the token of
//! `[daemon] token_file`, or, where none is configured, a client on this machine.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use axum::http::{HeaderMap, header};
use sha2::{Digest, Sha256};

/// Shorter ones can be guessed.
const SHORTEST: usize = 16;
/// A file larger than this holds no token.
const LONGEST: usize = 4096;

/// The rule for changes.
#[derive(Clone)]
pub struct Access {
    /// Compared by hash, so that the time it takes says nothing of the token.
    token: Option<[u8; 32]>,
}

/// Why a change is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    #[error("a change needs the header `Authorization: Bearer TOKEN`, with the token of [daemon] token_file")]
    NoToken,
    #[error("the token is not the one of [daemon] token_file")]
    WrongToken,
    #[error("without [daemon] token_file in the configuration, changes are taken from this machine alone")]
    NotLocal,
}

impl Access {
    /// Only clients on this machine.
    pub fn local() -> Self {
        Access { token: None }
    }

    /// Reads the token, which is the file's text without white space around it.
    pub fn read(path: Option<&Path>) -> io::Result<Self> {
        let Some(path) = path else { return Ok(Access::local()) };
        let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
        if std::fs::metadata(path)?.len() > LONGEST as u64 {
            return Err(invalid(format!("it has more than {LONGEST} bytes")));
        }
        let text = std::fs::read_to_string(path)?;
        let token = text.trim();
        if token.len() < SHORTEST {
            let make = "make one with: head -c 24 /dev/urandom | base64";
            return Err(invalid(format!("a token has at least {SHORTEST} characters; {make}")));
        }
        Ok(Access { token: Some(Sha256::digest(token).into()) })
    }

    /// Whether a client at `peer` that sends `headers` may change something.
    pub fn check(&self, peer: SocketAddr, headers: &HeaderMap) -> Result<(), Denied> {
        let Some(token) = self.token else {
            // A name other than localhost may be a stranger's that was made to point here, in a browser on this
            // machine.
            let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
            let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
            let address = name.trim_start_matches('[').trim_end_matches(']');
            let direct = name == "localhost" || address.parse::<IpAddr>().is_ok();
            return if peer.ip().to_canonical().is_loopback() && direct {
                Ok(())
            } else {
                Err(Denied::NotLocal)
            };
        };
        let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let given = given.and_then(|value| value.strip_prefix("Bearer ")).ok_or(Denied::NoToken)?;
        let given: [u8; 32] = Sha256::digest(given.trim()).into();
        if given == token { Ok(()) } else { Err(Denied::WrongToken) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(header::HeaderName, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect()
    }

    #[test]
    fn without_a_token_only_this_machine_may_change_and_no_page_of_a_strangers_name() {
        let access = Access::read(None).unwrap();
        let at =
            |peer: &str, host: &str| access.check(peer.parse().unwrap(), &headers(&[(header::HOST, host)]));
        for (peer, host) in
            [("127.0.0.1:5", "127.0.0.1:9464"), ("[::1]:5", "[::1]:9464"), ("127.0.0.1:5", "localhost:9464")]
        {
            assert_eq!(at(peer, host), Ok(()), "{peer} {host}");
        }
        assert_eq!(at("[::ffff:127.0.0.1]:5", "localhost"), Ok(()));
        assert_eq!(at("10.0.0.7:5", "127.0.0.1:9464"), Err(Denied::NotLocal));
        assert_eq!(at("127.0.0.1:5", "evil.example:9464"), Err(Denied::NotLocal));
        assert_eq!(access.check("127.0.0.1:5".parse().unwrap(), &HeaderMap::new()), Err(Denied::NotLocal));
    }

    #[test]
    fn with_a_token_it_is_the_token_that_counts() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "  0123456789abcdef\n").unwrap();
        let access = Access::read(Some(file.path())).unwrap();
        let given = |value: &str| {
            access.check("10.0.0.7:5".parse().unwrap(), &headers(&[(header::AUTHORIZATION, value)]))
        };
        assert_eq!(given("Bearer 0123456789abcdef"), Ok(()));
        assert_eq!(given("Bearer 0123456789abcdeg"), Err(Denied::WrongToken));
        assert_eq!(given("Bearer "), Err(Denied::WrongToken));
        assert_eq!(given("Basic 0123456789abcdef"), Err(Denied::NoToken));
        let local = access.check("127.0.0.1:5".parse().unwrap(), &headers(&[(header::HOST, "localhost")]));
        assert_eq!(local, Err(Denied::NoToken), "this machine needs it as well");
    }

    #[test]
    fn files_without_a_token_are_refused_with_how_to_make_one() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(Access::read(Some(file.path())).err().unwrap().to_string().contains("/dev/urandom"));
        std::fs::write(file.path(), "x".repeat(5000)).unwrap();
        assert!(Access::read(Some(file.path())).is_err());
        assert!(Access::read(Some(Path::new("/nonexistent/token"))).is_err());
    }
}
