//! JSON as qemu-img prints it: four spaces a level, members in a fixed order, a line of its own for the
//! bracket that closes an empty list.

/// A value to print.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Json {
    Text(String),
    Number(u64),
    Flag(bool),
    List(Vec<Json>),
    Object(Vec<(&'static str, Json)>),
}

impl From<&str> for Json {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Json {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<u64> for Json {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl From<bool> for Json {
    fn from(on: bool) -> Self {
        Self::Flag(on)
    }
}

impl Json {
    /// The text of this value, with a line break at its end.
    pub(crate) fn print(&self) -> String {
        let mut text = String::new();
        self.write(0, &mut text);
        text.push('\n');
        text
    }

    fn write(&self, level: usize, into: &mut String) {
        match self {
            Self::Text(text) => quote(text, into),
            Self::Number(number) => into.push_str(&number.to_string()),
            Self::Flag(on) => into.push_str(if *on { "true" } else { "false" }),
            Self::List(items) => {
                let items: Vec<_> = items.iter().map(|item| (None, item)).collect();
                write_members(('[', ']'), &items, level, into);
            }
            Self::Object(members) => {
                let members: Vec<_> = members
                    .iter()
                    .map(|(name, value)| (Some(*name), value))
                    .collect();
                write_members(('{', '}'), &members, level, into);
            }
        }
    }
}

fn write_members(
    brackets: (char, char),
    members: &[(Option<&'static str>, &Json)],
    level: usize,
    into: &mut String,
) {
    into.push(brackets.0);
    for (index, (name, value)) in members.iter().enumerate() {
        into.push_str(if index == 0 { "\n" } else { ",\n" });
        into.push_str(&"    ".repeat(level + 1));
        if let Some(name) = name {
            quote(name, into);
            into.push_str(": ");
        }
        value.write(level + 1, into);
    }
    into.push('\n');
    into.push_str(&"    ".repeat(level));
    into.push(brackets.1);
}

/// A string in quotes; what is not ASCII is escaped.
pub(crate) fn quote(text: &str, into: &mut String) {
    into.push('"');
    for character in text.chars() {
        match character {
            '"' => into.push_str("\\\""),
            '\\' => into.push_str("\\\\"),
            '\u{8}' => into.push_str("\\b"),
            '\u{c}' => into.push_str("\\f"),
            '\n' => into.push_str("\\n"),
            '\r' => into.push_str("\\r"),
            '\t' => into.push_str("\\t"),
            ' '..='~' => into.push(character),
            other => {
                for unit in other.encode_utf16(&mut [0; 2]) {
                    into.push_str(&format!("\\u{unit:04X}"));
                }
            }
        }
    }
    into.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_looks_as_qemu_img_prints_it() {
        let json = Json::Object(vec![
            ("list", Json::List(vec![])),
            ("data", Json::Object(vec![])),
            ("name", "a\"ä\n".into()),
            ("list", Json::List(vec![7.into(), true.into()])),
        ]);
        let text = "{\n    \"list\": [\n    ],\n    \"data\": {\n    },\n    \"name\": \"a\\\"\\u00E4\\n\",\n    \
                    \"list\": [\n        7,\n        true\n    ]\n}\n";
        assert_eq!(json.print(), text);
    }
}
