//! Strings and keys as Go decodes them.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, Visitor};

/// The number of bytes of a field's name that are compared. No field that is read has a longer name.
const MAX_NAME: usize = 64;

/// Reads a key of an object; the function converts its bytes.
pub(super) struct Key(pub(super) fn(&[u8]) -> String);

/// Converts the bytes of a string as Go does: invalid UTF-8 is replaced. `serde_json` gives an unpaired surrogate
/// as three bytes of invalid UTF-8.
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

/// Folds a letter as Go does when it matches names, by Unicode's simple folding: two letters outside of ASCII
/// fold to ASCII letters.
fn fold(letter: char) -> char {
    match letter {
        '\u{212a}' => 'k',
        '\u{17f}' => 's',
        letter => letter.to_ascii_lowercase(),
    }
}

/// Converts the name of a field to lower case.
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
