//! The documented example `config/inspectd.toml`, written from the table of keys.

use std::fmt::Write;

use super::keys::{Default, KEYS, Key, Reload, Section};

const HEAD: &str = "\
# Configuration of inspectd: every key there is, with its default.
#
#   inspectd check --config inspectd.toml     says what is wrong with it, and where
#   inspectd plan --config inspectd.toml      says what a reload would do
#   systemctl reload inspectd                 takes over all of it or nothing: keys marked [hot] between two
#                                             frames, those marked [camera] by starting the line's camera anew
#   systemctl restart inspectd                needed for a change of keys marked [restart], and of the lines' names
#
# Relative paths start from the folder of this file. A key that starts with `# ` here has no default.
# Generated from src/config/keys.rs: UPDATE_EXAMPLE=1 cargo test --lib config::
";

/// The example. It can be used as it stands, once its model exists.
pub fn example() -> String {
    let mut text = HEAD.to_owned();
    for section in Section::all() {
        let _ = write!(text, "\n# {}\n{}\n", wrap(section.about()), section.header());
        for key in KEYS.iter().filter(|key| key.section == section) {
            let _ = write!(text, "\n# {}\n{}\n", wrap(&comment(key)), assignment(key));
        }
    }
    text
}

fn comment(key: &Key) -> String {
    let mut text = format!("{} {}", key.text, capital(&key.kind.to_string()));
    if !key.unit.is_empty() {
        let _ = write!(text, ", in {}", key.unit);
    }
    text.push('.');
    if key.default == Default::Required {
        text.push_str(" Required.");
    }
    text.push_str(match key.reload {
        Reload::Hot => " [hot]",
        Reload::Line => " [camera]",
        Reload::Daemon => " [restart]",
    });
    text
}

fn assignment(key: &Key) -> String {
    match key.default {
        Default::Value(literal) => format!("{} = {literal}", key.name),
        Default::Required => format!("{} = {}", key.name, key.example),
        Default::Absent => format!("# {} = {}", key.name, key.example),
    }
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

/// Comment lines of at most 100 characters.
fn wrap(text: &str) -> String {
    let mut wrapped = String::new();
    let mut column = 2;
    for word in text.split(' ') {
        let length = word.chars().count();
        if column > 2 && column + 1 + length > 100 {
            wrapped.push_str("\n# ");
            column = 2;
        } else if column > 2 {
            wrapped.push(' ');
            column += 1;
        }
        wrapped.push_str(word);
        column += length;
    }
    wrapped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_example_is_the_table_of_keys() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/config/inspectd.toml");
        if std::env::var_os("UPDATE_EXAMPLE").is_some() {
            std::fs::write(path, example()).unwrap();
        }
        let file = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            file == example(),
            "config/inspectd.toml is not what the table of keys says; run: UPDATE_EXAMPLE=1 cargo test --lib config::"
        );
    }
}
