//! What the plant calls a part: carried from the trigger to the verdict.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

const LONGEST: usize = 64;

/// 1 to 64 printable ASCII characters. Lies in place, so a frame carries it without allocating.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PartId {
    length: u8,
    bytes: [u8; LONGEST],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a part id has 1 to {LONGEST} printable ASCII characters")]
pub struct NotAPartId;

impl PartId {
    pub fn as_str(&self) -> &str {
        let text = self.bytes.get(..usize::from(self.length)).unwrap_or_default();
        // ASCII, or it would not have been made.
        std::str::from_utf8(text).unwrap_or_default()
    }
}

impl FromStr for PartId {
    type Err = NotAPartId;

    fn from_str(text: &str) -> Result<Self, NotAPartId> {
        let printable = |byte: &u8| (b' '..=b'~').contains(byte);
        if text.is_empty() || text.len() > LONGEST || !text.as_bytes().iter().all(printable) {
            return Err(NotAPartId);
        }
        let mut bytes = [0; LONGEST];
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        Ok(PartId { length: text.len() as u8, bytes })
    }
}

impl fmt::Display for PartId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for PartId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl Serialize for PartId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printable_ascii_of_1_to_64_characters_is_a_part_id() {
        for text in ["7", "A-17/b \"x\"", &"z".repeat(64)] {
            let part: PartId = text.parse().unwrap();
            assert_eq!((part.as_str(), part.to_string().as_str()), (text, text));
        }
        for text in ["", &"z".repeat(65), "tab\there", "line\n", "é", "nul\0"] {
            assert_eq!(text.parse::<PartId>(), Err(NotAPartId), "{text:?}");
        }
    }
}
