//! The configuration as typed: every known key with its place in the file. Reading goes on after a
//! mistake, so that one run shows them all.

use std::fmt;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostic::{Diagnostics, nearest};
use super::keys::{Default, KEYS, Key, Kind, Section};

/// A value of one of the table's kinds.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Text(String),
    Integer(u64),
    Float(f64),
    Bool(bool),
    Rect([u64; 4]),
}

/// As a TOML literal.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // Debug escapes quotes, backslashes and control characters as TOML does.
            Value::Text(text) => write!(f, "{text:?}"),
            Value::Integer(n) => write!(f, "{n}"),
            Value::Float(x) => write!(f, "{x}"),
            Value::Bool(yes) => write!(f, "{yes}"),
            Value::Rect(rect) => write!(f, "{rect:?}"),
        }
    }
}

/// The values of one section, in the table's order; what the file does not say has its default.
#[derive(Debug)]
pub struct RawSection {
    /// Place of the section's header, for what is missing.
    pub header: Range<usize>,
    /// As in `line[0].outputs`.
    pub path: String,
    values: Vec<(&'static Key, Option<Value>, Range<usize>)>,
}

impl RawSection {
    /// Value and place of a key. The place is the header's where the default was taken.
    pub fn get(&self, name: &str) -> (Option<&Value>, Range<usize>) {
        self.values
            .iter()
            .find(|(key, ..)| key.name == name)
            .map_or((None, self.header.clone()), |(_, value, span)| (value.as_ref(), span.clone()))
    }

    /// Where each key stands, by its path.
    pub fn places(&self) -> impl Iterator<Item = (String, Range<usize>)> {
        self.values.iter().map(|(key, _, span)| (self.path_of(key.name), span.clone()))
    }

    pub fn into_settings(self) -> Vec<(&'static Key, Option<Value>)> {
        self.values.into_iter().map(|(key, value, _)| (key, value)).collect()
    }

    /// As in `line[0].outputs.verdicts`.
    pub fn path_of(&self, name: &str) -> String {
        format!("{}.{name}", self.path)
    }
}

/// A table and those inside it, or tables side by side.
#[derive(Debug)]
pub struct RawGroup(Vec<(Section, RawSection)>);

impl RawGroup {
    /// The table of a section that this group has.
    pub fn section(&self, section: Section) -> &RawSection {
        let found = self.0.iter().find(|(of, _)| *of == section);
        // Groups are made of whole lists of sections, so this is about which list is asked.
        &found.unwrap_or_else(|| unreachable!("{} is not of this group", section.name())).1
    }

    pub fn sections(&self) -> impl Iterator<Item = &RawSection> {
        self.0.iter().map(|(_, section)| section)
    }

    pub fn into_settings(self) -> Vec<(&'static Key, Option<Value>)> {
        self.0.into_iter().flat_map(|(_, section)| section.into_settings()).collect()
    }
}

#[derive(Debug)]
pub struct RawConfig {
    /// [`Section::TOP`].
    pub top: RawGroup,
    /// Each [`Section::Line`] and [`Section::IN_LINE`].
    pub lines: Vec<RawGroup>,
}

/// Reads `text`. Mistakes go to `out`; what could be read is returned in any case.
pub fn read(text: &str, out: &mut Diagnostics<'_>) -> RawConfig {
    let (document, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        let help = match error.message() {
            m if m.contains("duplicate key") => Some("remove one of the two".to_owned()),
            _ => None,
        };
        out.add(error.span().unwrap_or(0..0), "", format!("this is not TOML: {}", error.message()), help);
    }
    let table = document.get_ref();
    let mut lines = Vec::new();
    for (name, value) in table {
        match (name.get_ref().as_ref(), value.get_ref()) {
            ("line", DeValue::Array(array)) => {
                for (i, item) in array.iter().enumerate() {
                    match item.get_ref() {
                        DeValue::Table(table) => lines.push(line(table, item.span(), i, out)),
                        _ => out.add(
                            item.span(),
                            &format!("line[{i}]"),
                            "a line is a table".to_owned(),
                            Some("[[line]] on a line of its own, then its keys".to_owned()),
                        ),
                    }
                }
            }
            ("line", DeValue::Table(table)) => {
                out.add(
                    value.span(),
                    "line",
                    "there may be several lines, so each is written with two brackets".to_owned(),
                    Some("[[line]]".to_owned()),
                );
                lines.push(line(table, value.span(), 0, out));
            }
            (known, _) if Section::TOP.iter().any(|section| section.name() == known) => {}
            (other, _) => unknown_top(other, name.span(), out),
        }
    }
    RawConfig { top: group(Section::TOP, table, 0..0, "", out), lines }
}

fn unknown_top(name: &str, span: Range<usize>, out: &mut Diagnostics<'_>) {
    let tables = || Section::TOP.iter().chain(&[Section::Line]);
    let near = nearest(name, tables().map(|section| section.name()));
    let near = tables().find(|section| Some(section.name()) == near);
    let help = match (near, KEYS.iter().find(|key| key.name == name)) {
        (Some(section), _) => section.header(),
        (None, Some(key)) => format!("put it under {}", key.section.header()),
        (None, None) => {
            let all: Vec<String> = tables().map(|section| section.header()).collect();
            format!("a configuration has {}", all.join(", "))
        }
    };
    out.add(span, name, format!("`{name}` is not known here"), Some(help));
}

fn line(table: &DeTable<'_>, header: Range<usize>, index: usize, out: &mut Diagnostics<'_>) -> RawGroup {
    let path = format!("line[{index}]");
    let mut group = group(Section::IN_LINE, table, header.clone(), &path, out);
    let inner: Vec<&str> = Section::IN_LINE.iter().map(|section| section.name()).collect();
    group.0.push((Section::Line, section(Section::Line, table, header, &path, &inner, out)));
    group
}

/// Reads those tables in `table`, whose header stands at `header`, that have a name of `sections`.
fn group(
    sections: &[Section],
    table: &DeTable<'_>,
    header: Range<usize>,
    path: &str,
    out: &mut Diagnostics<'_>,
) -> RawGroup {
    let empty = DeTable::new();
    let mut read = |&of: &Section| {
        let name = of.name();
        let path = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
        let (table, header) = match table.get(name).map(|value| (value.get_ref(), value.span())) {
            Some((DeValue::Table(table), span)) => (table, span),
            Some((_, span)) => {
                let help = format!("{} on a line of its own", of.header());
                out.add(span, &path, format!("`{name}` is a table"), Some(help));
                (&empty, header.clone())
            }
            None => (&empty, header.clone()),
        };
        (of, section(of, table, header, &path, &[], out))
    };
    RawGroup(sections.iter().map(&mut read).collect())
}

/// Reads one table by the keys of its section; `inner` names the tables in it, read elsewhere.
fn section(
    section: Section,
    table: &DeTable<'_>,
    header: Range<usize>,
    path: &str,
    inner: &[&str],
    out: &mut Diagnostics<'_>,
) -> RawSection {
    for (name, _) in table {
        let text = name.get_ref().as_ref();
        if section.key(text).is_none() && !inner.contains(&text) {
            unknown_key(section, text, name.span(), path, inner, out);
        }
    }
    let mut values = Vec::new();
    for key in section.keys() {
        let (value, span) = match table.get(key.name) {
            Some(value) => (typed(key, value, path, out), value.span()),
            None => (default(key, &header, path, out), header.clone()),
        };
        values.push((key, value, span));
    }
    RawSection { header, path: path.to_owned(), values }
}

fn unknown_key(
    section: Section,
    name: &str,
    span: Range<usize>,
    path: &str,
    inner: &[&str],
    out: &mut Diagnostics<'_>,
) {
    let here: Vec<&str> = section.keys().map(|key| key.name).chain(inner.iter().copied()).collect();
    let elsewhere = KEYS.iter().find(|key| key.name == name);
    let help = if let Some(near) = nearest(name, here.iter().copied()) {
        near.to_owned()
    } else if let Some(key) = elsewhere {
        format!("put it under {}", key.section.header())
    } else {
        format!("one of {}", here.join(", "))
    };
    let message = format!("`{name}` is not a key of {}", section.header());
    out.add(span, &format!("{path}.{name}"), message, Some(help));
}

fn default(key: &'static Key, header: &Range<usize>, path: &str, out: &mut Diagnostics<'_>) -> Option<Value> {
    match key.default {
        Default::Absent => None,
        Default::Value(literal) => literal_value(key, literal),
        Default::Required => {
            out.add(
                header.clone(),
                &format!("{path}.{}", key.name),
                format!("{} has no `{}`", key.section.header(), key.name),
                Some(format!("{} = {}", key.name, key.example)),
            );
            None
        }
    }
}

/// A literal of the table itself; a test reads them all.
pub(super) fn literal_value(key: &'static Key, literal: &str) -> Option<Value> {
    let value = DeValue::parse(literal).ok()?;
    let mut none = Diagnostics::new("".as_ref(), literal);
    typed(key, &value, "", &mut none)
}

/// The value if it is of the key's kind, or `None` with a mistake in `out`.
fn typed(
    key: &'static Key,
    value: &Spanned<DeValue<'_>>,
    path: &str,
    out: &mut Diagnostics<'_>,
) -> Option<Value> {
    let name = key.name;
    let mut refuse = |message: String, help: String| {
        out.add(value.span(), &format!("{path}.{name}"), message, Some(help));
        None
    };
    let example = || format!("{name} = {}", key.example);
    match (key.kind, value.get_ref()) {
        (Kind::Text | Kind::Path | Kind::Sink, DeValue::String(text)) => {
            if text.trim().is_empty() {
                return refuse(format!("`{name}` is empty"), example());
            }
            if text.contains('\0') {
                return refuse(format!("`{name}` holds a zero byte"), example());
            }
            Some(Value::Text(text.to_string()))
        }
        (Kind::Name, DeValue::String(text)) => {
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
            if text.is_empty() || text.len() > 63 || !text.chars().all(plain) {
                let fixed: String =
                    text.to_lowercase().chars().map(|c| if plain(c) { c } else { '-' }).take(63).collect();
                let fixed = if fixed.is_empty() { "cam1".to_owned() } else { fixed };
                return refuse(
                    format!("{text:?} is not a name: 1 to 63 of a-z, 0-9, _ and - are allowed"),
                    format!("{name} = \"{fixed}\""),
                );
            }
            Some(Value::Text(text.to_string()))
        }
        (Kind::Address, DeValue::String(text)) => {
            if text != "off" && text.parse::<std::net::SocketAddr>().is_err() {
                return refuse(format!("{text:?} is neither IP:PORT nor \"off\""), example());
            }
            Some(Value::Text(text.to_string()))
        }
        (Kind::Url(schemes), DeValue::String(text)) => match super::outlets::url(text, schemes) {
            Ok(_) => Some(Value::Text(text.to_string())),
            // The text itself is not repeated: it may hold a password.
            Err(why) => refuse(format!("`{name}` {why}"), example()),
        },
        (Kind::Device, DeValue::String(text)) => match text.parse::<crate::engine::DeviceName>() {
            Ok(_) => Some(Value::Text(text.to_string())),
            Err(why) => refuse(why, example()),
        },
        (Kind::Choice(choices), DeValue::String(text)) => {
            if !choices.contains(&text.as_ref()) {
                let help = match nearest(text, choices.iter().copied()) {
                    Some(near) => format!("{name} = \"{near}\""),
                    None => format!("{}", key.kind),
                };
                return refuse(format!("`{name}` cannot be {text:?}"), help);
            }
            Some(Value::Text(text.to_string()))
        }
        (Kind::Integer { min, max }, DeValue::Integer(_)) => match integer(value) {
            Some(n) if (min..=max).contains(&n) => Some(Value::Integer(n)),
            _ => {
                let typed = written(value);
                refuse(format!("`{name}` is {typed}, and must be {}", key.kind), example())
            }
        },
        (Kind::Float, DeValue::Float(x)) => match x.as_str().parse::<f64>() {
            Ok(x) if (x as f32).is_finite() => Some(Value::Float(x)),
            _ => refuse(format!("`{name}` must be a finite number"), example()),
        },
        (Kind::Float, DeValue::Integer(i)) => match i.as_str().parse::<f64>() {
            Ok(x) if i.radix() == 10 && (x as f32).is_finite() => Some(Value::Float(x)),
            _ => refuse(format!("`{name}` must be a finite number"), example()),
        },
        (Kind::Bool, DeValue::Boolean(yes)) => Some(Value::Bool(*yes)),
        (Kind::Rect, DeValue::Array(array)) => {
            let numbers: Vec<u64> = array.iter().filter_map(integer).collect();
            match <[u64; 4]>::try_from(numbers) {
                Ok(rect) if array.len() == 4 => Some(Value::Rect(rect)),
                _ => refuse(format!("`{name}` is four whole numbers, [x, y, width, height]"), example()),
            }
        }
        (kind, other) => {
            refuse(format!("`{name}` is {}, and must be {kind}", article(other.type_str())), example())
        }
    }
}

fn integer(value: &Spanned<DeValue<'_>>) -> Option<u64> {
    match value.get_ref() {
        DeValue::Integer(i) => u64::from_str_radix(i.as_str(), i.radix()).ok(),
        _ => None,
    }
}

fn written(value: &Spanned<DeValue<'_>>) -> String {
    match value.get_ref() {
        DeValue::Integer(i) => i.to_string(),
        other => other.type_str().to_owned(),
    }
}

fn article(kind: &str) -> String {
    match kind.chars().next() {
        Some('a' | 'e' | 'i' | 'o' | 'u') => format!("an {kind}"),
        _ => format!("a {kind}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_and_examples_of_the_table_are_values_of_their_kind() {
        for key in KEYS {
            assert!(literal_value(key, key.example).is_some(), "example of {}", key.name);
            if let Default::Value(literal) = key.default {
                assert!(literal_value(key, literal).is_some(), "default of {}", key.name);
            }
        }
    }

    #[test]
    fn values_print_as_toml_that_reads_back() {
        let source = Section::Line.key("source").unwrap();
        let value = Value::Text("a \"b\" \\ \t".into());
        assert_eq!(literal_value(source, &value.to_string()), Some(value));
    }
}
