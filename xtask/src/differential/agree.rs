//! Whether two programs describe an image alike, field by field.

use serde_json::Value;

/// The fields in which `ours` differs from `theirs`, a line each.
pub(super) fn differences(command: &str, theirs: &Value, ours: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    let (theirs, ours) = match command {
        "map" => (&without_holes(theirs), &without_holes(ours)),
        _ => (theirs, ours),
    };
    compare("", theirs, ours, &mut |path, theirs, ours| {
        lines.push(format!(
            "{command}: {path} is {theirs} by qemu-img and {ours} here"
        ));
    });
    lines
}

/// A map without what the file below says of data: QEMU looks for holes only in files that hold noticeably
/// less than the image counts, and this program in all. Stretches that are alike then are one.
fn without_holes(map: &Value) -> Value {
    let Value::Array(entries) = map else {
        return map.clone();
    };
    let mut merged: Vec<Value> = Vec::new();
    for entry in entries {
        let mut entry = entry.clone();
        if entry["data"] == true {
            entry["zero"] = Value::Bool(false);
        }
        if let Some(last) = merged.last_mut().filter(|last| continues(last, &entry)) {
            let length =
                last["length"].as_u64().unwrap_or(0) + entry["length"].as_u64().unwrap_or(0);
            last["length"] = length.into();
        } else {
            merged.push(entry);
        }
    }
    Value::Array(merged)
}

/// Whether a stretch of a map carries on where another ends.
fn continues(before: &Value, after: &Value) -> bool {
    let alike = ["depth", "present", "zero", "data", "compressed"];
    let end = |key: &str| Some(before[key].as_u64()? + before["length"].as_u64()?);
    alike.iter().all(|key| before[key] == after[key]) && end("offset") == after["offset"].as_u64()
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
        (Value::Array(one), Value::Array(other)) => {
            // What follows the first difference is shifted.
            let alike = one
                .iter()
                .zip(other)
                .take_while(|(one, other)| one == other);
            let index = alike.count();
            let at = |array: &[Value]| array.get(index).cloned().unwrap_or(Value::Null);
            note(&format!("{path}[{index}]"), &at(one), &at(other));
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
