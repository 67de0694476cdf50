//! Options as QEMU takes them: `key=value,key=value` and JSON objects, both as dotted keys.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::Value;

use super::Failure;

/// Options by dotted key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Options(BTreeMap<String, String>);

/// Splits `key=value,key=value`; two commas stand for one comma in a value. Names have no commas.
pub(crate) fn split_list(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        let part = parts.last_mut().expect("there is one");
        if character != ',' {
            part.push(character);
        } else if part.contains('=') && characters.next_if_eq(&',').is_some() {
            part.push(',');
        } else {
            parts.push(String::new());
        }
    }
    if parts.last().is_some_and(String::is_empty) {
        parts.pop();
    }
    parts
}

/// What a word of a flag means.
pub(crate) fn flag(text: &str) -> Option<bool> {
    match text {
        "on" | "yes" | "true" | "y" => Some(true),
        "off" | "no" | "false" | "n" => Some(false),
        _ => None,
    }
}

/// QEMU's JSON takes strings in single quotes too, which a shell lets through more easily: the same text with
/// double ones.
fn double_quoted(text: &str) -> Cow<'_, str> {
    if !text.contains('\'') {
        return Cow::Borrowed(text);
    }
    let mut doubled = String::with_capacity(text.len());
    let mut quote = None;
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' if quote.is_some() => match characters.next() {
                Some('\'') => doubled.push('\''),
                Some(escaped) => doubled.extend(['\\', escaped]),
                None => doubled.push('\\'),
            },
            '"' if quote == Some('\'') => doubled.push_str("\\\""),
            '"' | '\'' if quote == Some(character) => {
                quote = None;
                doubled.push('"');
            }
            '"' | '\'' if quote.is_none() => {
                quote = Some(character);
                doubled.push('"');
            }
            other => doubled.push(other),
        }
    }
    Cow::Owned(doubled)
}

impl Options {
    /// Options of a `--image-opts` argument. A word without `=` is a flag that is on.
    pub(crate) fn from_list(text: &str) -> Self {
        let mut options = Self::default();
        for part in split_list(text) {
            let (key, value) = match part.split_once('=') {
                Some((key, value)) => (key.to_owned(), value.to_owned()),
                None => (part, "on".to_owned()),
            };
            options.0.insert(key, value);
        }
        options
    }

    /// Options of a `json:` name.
    pub(crate) fn from_json(text: &str) -> Result<Self, Failure> {
        let value: Value = serde_json::from_str(&double_quoted(text))
            .map_err(|error| Failure(format!("Could not parse the JSON options: {error}")))?;
        let Value::Object(_) = value else {
            return Err(Failure::new("Invalid JSON object given"));
        };
        let mut options = Self::default();
        options.flatten(String::new(), value);
        Ok(options)
    }

    fn flatten(&mut self, key: String, value: Value) {
        let below = |name: &str| {
            if key.is_empty() {
                name.to_owned()
            } else {
                format!("{key}.{name}")
            }
        };
        match value {
            Value::Object(members) => {
                for (name, value) in members {
                    self.flatten(below(&name), value);
                }
            }
            Value::Array(items) => {
                for (index, value) in items.into_iter().enumerate() {
                    self.flatten(below(&index.to_string()), value);
                }
            }
            Value::Null => {
                self.0.insert(key, String::new());
            }
            Value::Bool(on) => {
                self.0.insert(key, if on { "on" } else { "off" }.to_owned());
            }
            Value::Number(number) => {
                self.0.insert(key, number.to_string());
            }
            Value::String(text) => {
                self.0.insert(key, text);
            }
        }
    }

    /// Takes an option out.
    pub(crate) fn take(&mut self, key: &str) -> Option<String> {
        self.0.remove(key)
    }

    /// Takes an option out that is `on` or `off`.
    pub(crate) fn take_flag(&mut self, key: &str) -> Result<Option<bool>, Failure> {
        let Some(text) = self.take(key) else {
            return Ok(None);
        };
        flag(&text)
            .map(Some)
            .ok_or_else(|| Failure(format!("Parameter '{key}' expects 'on' or 'off'")))
    }

    /// Takes out what stands below `key.`, without that prefix.
    pub(crate) fn take_below(&mut self, key: &str) -> Self {
        let prefix = format!("{key}.");
        let (below, rest) = std::mem::take(&mut self.0)
            .into_iter()
            .partition(|(key, _)| key.starts_with(&prefix));
        self.0 = rest;
        let below: BTreeMap<_, _> = below;
        Self(
            below
                .into_iter()
                .map(|(key, value)| (key[prefix.len()..].to_owned(), value))
                .collect(),
        )
    }

    /// Whether anything stands below `key.`, or at `key` itself.
    pub(crate) fn has_below(&self, key: &str) -> bool {
        let is_below = |other: &String| {
            let rest = other.strip_prefix(key);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        self.0.keys().any(is_below)
    }

    /// Sets an option.
    pub(crate) fn set(&mut self, key: &str, value: &str) {
        self.0.insert(key.to_owned(), value.to_owned());
    }

    /// Takes in options that are not set yet.
    pub(crate) fn add(&mut self, others: Self) {
        for (key, value) in others.0 {
            self.0.entry(key).or_insert(value);
        }
    }

    /// The value of an option.
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// Whether no option is left.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The keys that are left, in alphabetical order.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// The first key that is left, in alphabetical order.
    pub(crate) fn first_key(&self) -> Option<&str> {
        self.0.keys().next().map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_commas_are_one() {
        assert_eq!(split_list("a=1,b=x,,y,c"), ["a=1", "b=x,y", "c"]);
        assert_eq!(split_list("a,,b=c"), ["a", "", "b=c"]);
        assert!(split_list("").is_empty());
    }

    #[test]
    fn single_quotes_are_quotes_in_json() {
        let text = r#"{'driver': "raw", 'file': {'filename': 'it\'s "a"', "x'": 'b\\'}}"#;
        let options = Options::from_json(text).unwrap();
        assert_eq!(options.get("driver"), Some("raw"));
        assert_eq!(options.get("file.filename"), Some(r#"it's "a""#));
        assert_eq!(options.get("file.x'"), Some(r"b\"));
        assert!(Options::from_json("{'driver: 1}").is_err());
    }

    #[test]
    fn json_is_told_by_dotted_keys() {
        let text =
            r#"{"driver":"qcow2","file":{"driver":"file","filename":"a","locking":true},"n":7}"#;
        let mut options = Options::from_json(text).unwrap();
        assert_eq!(options.take("driver").as_deref(), Some("qcow2"));
        let mut file = options.take_below("file");
        assert_eq!(file.take("filename").as_deref(), Some("a"));
        assert_eq!(file.take_flag("locking"), Ok(Some(true)));
        assert_eq!(options.first_key(), Some("n"));
        assert!(Options::from_json("{").is_err());
        assert!(Options::from_json("7").is_err());
    }
}
