//! Strings and keys as Go decodes them.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, Visitor};

/// Bytes of a name that is looked at: no field that is read has a longer one.
const MAX_NAME: usize = 64;

/// A key of an object, as the function makes it from its bytes.
pub(super) struct Key(pub(super) fn(&[u8]) -> String);

/// What Go makes of the bytes of a string. `serde_json` hands half of a surrogate pair over as the three
/// bytes that it would have in UTF-8, if that could express it.
pub(super) fn text(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        if !chunk.invalid().is_empty() {
            text.push(char::REPLACEMENT_CHARACTER);
        }
    }
    text
}

/// Go matches names by Unicode's simple folding: two letters outside of ASCII fold to one in it.
fn fold(letter: char) -> char {
    match letter {
        '\u{212a}' => 'k',
        '\u{17f}' => 's',
        letter => letter.to_ascii_lowercase(),
    }
}

/// The name of a field, in lower case.
pub(super) fn field_name(bytes: &[u8]) -> String {
    let bytes = bytes.get(..MAX_NAME).unwrap_or(bytes);
    text(bytes).chars().map(fold).collect()
}

impl<'de> DeserializeSeed<'de> for Key {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_bytes(self)
    }
}

impl Visitor<'_> for Key {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<String, E> {
        Ok((self.0)(bytes))
    }
}
