//! Formats a record as one line of JSON: `time`, `level`, `target`, `message`, and its pairs.

use std::io::{self, Write};

use env_logger::fmt::Formatter;
use log::Record;
use serde_json::{Map, Value};

use super::record::Pairs;

/// Writes the line. Numbers and booleans keep their types; other values are strings.
pub(super) fn line(to: &mut Formatter, record: &Record<'_>) -> io::Result<()> {
    let time = to.timestamp_millis().to_string();
    writeln!(to, "{}", Value::Object(object(time, record)))
}

fn object(time: String, record: &Record<'_>) -> Map<String, Value> {
    let Pairs(pairs) = Pairs::of(record);
    let mut object: Map<_, _> = pairs.into_iter().collect();
    for (key, value) in [
        ("time", time),
        ("level", record.level().to_string()),
        ("target", record.target().to_owned()),
        ("message", record.args().to_string()),
    ] {
        object.insert(key.to_owned(), value.into());
    }
    object
}

#[cfg(test)]
mod tests {
    use log::kv;

    use super::*;

    #[test]
    fn a_record_is_an_object() {
        let pairs: [(&str, kv::Value<'_>); 5] = [
            ("image", "a \"quoted\"\nname".into()),
            ("layers", 3_u64.into()),
            ("took_ms", 12.345.into()),
            ("sound", true.into()),
            ("level", "of a pair".into()),
        ];
        let mut record = Record::builder();
        record
            .level(log::Level::Warn)
            .target("nri_unpack::test")
            .key_values(&pairs);
        let record = record.args(format_args!("text")).build();
        let object = object("now".to_owned(), &record);
        let expected = serde_json::json!({
            "time": "now",
            "level": "WARN",
            "target": "nri_unpack::test",
            "message": "text",
            "image": "a \"quoted\"\\nname",
            "layers": 3,
            "took_ms": 12.345,
            "sound": true,
        });
        assert_eq!(Value::Object(object), expected);
    }
}
