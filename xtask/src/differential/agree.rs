//! Whether two programs describe an image alike, field by field.

use serde_json::Value;

/// The fields in which `ours` differs from `theirs`, a line each.
pub(super) fn differences(command: &str, theirs: &Value, ours: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    compare("", theirs, ours, &mut |path, theirs, ours| {
        lines.push(format!(
            "{command}: {path} is {theirs} by qemu-img and {ours} here"
        ));
    });
    lines
}

fn compare(path: &str, theirs: &Value, ours: &Value, note: &mut impl FnMut(&str, &Value, &Value)) {
    match (theirs, ours) {
        (Value::Object(one), Value::Object(other)) => {
            for (key, theirs) in one {
                let path = format!("{path}.{key}");
                compare(&path, theirs, other.get(key).unwrap_or(&Value::Null), note);
            }
            for (key, ours) in other.iter().filter(|(key, _)| !one.contains_key(*key)) {
                note(&format!("{path}.{key}"), &Value::Null, ours);
            }
        }
        (Value::Array(one), Value::Array(other)) if one.len() == other.len() => {
            for ((theirs, ours), index) in one.iter().zip(other).zip(0..) {
                compare(&format!("{path}[{index}]"), theirs, ours, note);
            }
        }
        _ if theirs == ours => {}
        _ => note(if path.is_empty() { "all" } else { path }, theirs, ours),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_field_that_differs_is_named() {
        let theirs = json!({"a": 1, "b": [1, {"c": 2}], "d": 0});
        let ours = json!({"a": 1, "b": [1, {"c": 3}], "e": 0});
        assert_eq!(
            differences("info", &theirs, &ours),
            [
                "info: .b[1].c is 2 by qemu-img and 3 here",
                "info: .d is 0 by qemu-img and null here",
                "info: .e is null by qemu-img and 0 here",
            ]
        );
    }
}
