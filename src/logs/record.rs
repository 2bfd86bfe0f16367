//! Escapes and bounds the message and the pairs of a record, since they may quote pods and images. All formats (text,
//! JSON, the journal) get their records from here.

use std::fmt::Write as _;

use log::kv::{self, Key, Source, Value, VisitSource};
use log::{Level, Record};
use serde_json::{Number, Value as Json};

use crate::printable::printable;

/// The escaped message and pairs of a record.
#[derive(Debug)]
pub(super) struct Printable {
    message: String,
    pairs: Pairs,
}

/// The pairs, in the order of the record.
#[derive(Debug, Default)]
pub(super) struct Pairs(pub(super) Vec<(String, Json)>);

impl Printable {
    pub(super) fn new(record: &Record<'_>) -> Self {
        Self {
            message: printable(record.args()),
            pairs: Pairs::of(record),
        }
    }

    /// Calls `write` with the escaped record. Everything else is that of `original`.
    pub(super) fn with<T>(&self, original: &Record<'_>, write: impl FnOnce(&Record<'_>) -> T) -> T {
        let mut record = original.to_builder();
        record.key_values(&self.pairs);
        write(&record.args(format_args!("{}", self.message)).build())
    }
}

/// A record of which nothing is borrowed, with its pairs also in its text, since `journalctl` does not show fields.
#[derive(Debug)]
pub(super) struct Owned {
    level: Level,
    target: String,
    module: Option<String>,
    file: Option<String>,
    line: Option<u32>,
    text: String,
    pairs: Pairs,
}

impl Owned {
    pub(super) fn new(record: &Record<'_>, Printable { message, pairs }: Printable) -> Self {
        let mut text = message;
        for (key, value) in &pairs.0 {
            // A write to a string cannot fail.
            let _ = write!(text, " {key}={}", from_json(value));
        }
        Self {
            level: record.level(),
            target: record.target().to_owned(),
            module: record.module_path().map(str::to_owned),
            file: record.file().map(str::to_owned),
            line: record.line(),
            text,
            pairs,
        }
    }

    pub(super) fn with(&self, write: impl FnOnce(&Record<'_>)) {
        let mut record = Record::builder();
        record
            .level(self.level)
            .target(&self.target)
            .module_path(self.module.as_deref())
            .file(self.file.as_deref())
            .line(self.line)
            .key_values(&self.pairs);
        write(&record.args(format_args!("{}", self.text)).build());
    }
}

impl Pairs {
    pub(super) fn of(record: &Record<'_>) -> Self {
        let mut pairs = Self::default();
        // This visitor does not fail.
        let _ = record.key_values().visit(&mut pairs);
        pairs
    }
}

impl<'kvs> VisitSource<'kvs> for Pairs {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), kv::Error> {
        self.0.push((key.to_string(), to_json(&value)));
        Ok(())
    }
}

impl Source for Pairs {
    fn visit<'kvs>(&'kvs self, visitor: &mut dyn VisitSource<'kvs>) -> Result<(), kv::Error> {
        let mut pairs = self.0.iter();
        pairs.try_for_each(|(key, json)| visitor.visit_pair(Key::from_str(key), from_json(json)))
    }
}

/// Returns the value as JSON. Numbers and booleans keep their types; other values become strings.
fn to_json(value: &Value<'_>) -> Json {
    if let Some(number) = value.to_u64() {
        number.into()
    } else if let Some(number) = value.to_i64() {
        number.into()
    } else if let Some(number) = value.to_f64().and_then(Number::from_f64) {
        number.into()
    } else if let Some(boolean) = value.to_bool() {
        boolean.into()
    } else {
        printable(value).into()
    }
}

/// Returns the JSON as a value of a record.
fn from_json(json: &Json) -> Value<'_> {
    let number = |number: &Number| {
        let unsigned = number.as_u64().map(Value::from);
        let signed = || number.as_i64().map(Value::from);
        unsigned
            .or_else(signed)
            .or_else(|| number.as_f64().map(Value::from))
    };
    match json {
        Json::String(text) => text.as_str().into(),
        Json::Bool(boolean) => (*boolean).into(),
        Json::Number(n) => number(n).unwrap_or_else(Value::null),
        Json::Null | Json::Array(_) | Json::Object(_) => Value::null(),
    }
}
