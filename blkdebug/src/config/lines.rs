//! The lines of a configuration file, read as QEMU's scanner reads them.
//!
//! It is lenient in its own way: what follows a heading's or a value's end is ignored, a quote at the end
//! of a line may be missing, and a value that is not quoted is taken for an empty one.

use super::Problem;

/// The most bytes of a line, its end included.
pub(super) const MAX_LINE_LEN: usize = 1023;
/// Longer words end here.
const MAX_WORD_LEN: usize = 63;

/// What a line says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Line<'a> {
    Blank,
    Heading { name: &'a str, id: Option<&'a str> },
    Pair { key: &'a str, value: &'a str },
}

/// Reads a line, with its end where the file has one.
pub(super) fn read(line: &str) -> Result<Line<'_>, Problem> {
    if line.len() > MAX_LINE_LEN {
        return Err(Problem::LongLine);
    }
    if line == "\n" || line.starts_with('#') {
        return Ok(Line::Blank);
    }
    if let Some(heading) = line.strip_prefix('[') {
        let (name, rest) = word(heading);
        let id = rest.trim_start_matches(is_blank).strip_prefix('"');
        let id = id.map(|id| until(id, '"')).filter(|id| !id.is_empty());
        if !name.is_empty() && id.is_some() {
            return Ok(Line::Heading { name, id });
        }
        let name = until(heading, ']');
        if !name.is_empty() {
            return Ok(Line::Heading { name, id: None });
        }
    }
    let (key, rest) = word(line);
    if key.is_empty() {
        return Err(Problem::Syntax);
    }
    let value = rest.trim_start_matches(is_blank).strip_prefix('=');
    let value = value.and_then(|value| value.trim_start_matches(is_blank).strip_prefix('"'));
    let value = value.map_or("", |value| until(value, '"'));
    Ok(Line::Pair { key, value })
}

fn is_blank(character: char) -> bool {
    character.is_ascii_whitespace() || character == '\u{b}'
}

/// The first word, behind blanks, and what follows it.
fn word(text: &str) -> (&str, &str) {
    let text = text.trim_start_matches(is_blank);
    let end = text.find(is_blank).unwrap_or(text.len());
    text.split_at(text.floor_char_boundary(end.min(MAX_WORD_LEN)))
}

fn until(text: &str, end: char) -> &str {
    text.split(end).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair<'a>(key: &'a str, value: &'a str) -> Line<'a> {
        Line::Pair { key, value }
    }

    fn heading<'a>(name: &'a str, id: Option<&'a str>) -> Line<'a> {
        Line::Heading { name, id }
    }

    #[test]
    fn a_line_is_scanned_as_qemu_scans_it() {
        for (text, line) in [
            ("\n", Line::Blank),
            ("# x = \"1\"\n", Line::Blank),
            ("[a]\n", heading("a", None)),
            ("[a] x # y\n", heading("a", None)),
            ("[a \"b c\"]", heading("a", Some("b c"))),
            ("[a b]", heading("a b", None)),
            ("[a \"\"]", heading("a \"\"", None)),
            ("[a\n", heading("a\n", None)),
            (" [a]\n", pair("[a]", "")),
            ("[]\n", pair("[]", "")),
            ("  a = \"1\"\n", pair("a", "1")),
            ("a =\"1\" # x", pair("a", "1")),
            ("a = \"1\n", pair("a", "1\n")),
            ("a = 1\n", pair("a", "")),
            ("a= \"1\"\n", pair("a=", "")),
            ("a=\"1\"\n", pair("a=\"1\"", "")),
        ] {
            assert_eq!(read(text), Ok(line), "{text}");
        }
        assert_eq!(read("  \n"), Err(Problem::Syntax));
        assert_eq!(read(&"a".repeat(1024)), Err(Problem::LongLine));
    }
}
