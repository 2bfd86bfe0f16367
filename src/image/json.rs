//! JSON as containerd reads it, with Go's `encoding/json`: the name of a field matches in any case, `null`
//! stands for nothing, of a field that comes twice the second one counts, and what is not Unicode in a string
//! is replaced. What is not asked for is passed over, to any depth, and takes no memory. Pure.

use std::collections::HashMap;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// Bytes of a name that is looked at: no field that is read has a longer one.
const MAX_NAME: usize = 64;

/// An object of which some fields are read.
pub(super) trait Object {
    /// Reads the value of the field of this name, which is in lower case, or passes it over with [`skip`].
    fn field<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error>;
}

/// Elements of an array, as they come.
pub(super) trait Collect<T> {
    /// The array begins: what came before does not count.
    fn clear(&mut self);
    /// The next element; or why the whole document is refused.
    fn add(&mut self, element: T) -> Result<(), String>;
}

/// Reads a document that is one object.
pub(super) fn read<T: Object + Default>(bytes: &[u8]) -> Result<T, serde_json::Error> {
    let mut object = T::default();
    read_into(&mut object, bytes)?;
    Ok(object)
}

/// The same, into an object that is there.
pub(super) fn read_into<T: Object>(object: &mut T, bytes: &[u8]) -> Result<(), serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    Fields(object).deserialize(&mut deserializer)?;
    deserializer.end()
}

/// Passes over the value of a field.
pub(super) fn skip<'de, A: MapAccess<'de>>(map: &mut A) -> Result<(), A::Error> {
    map.next_value::<IgnoredAny>().map(drop)
}

/// Passes over the value of a field; answers whether it is `null`.
pub(super) fn is_null<'de, A: MapAccess<'de>>(map: &mut A) -> Result<bool, A::Error> {
    let value = map.next_value::<Option<IgnoredAny>>()?;
    Ok(value.is_none())
}

/// An object's fields.
pub(super) struct Fields<'a, T>(pub(super) &'a mut T);

/// An object that may be absent.
pub(super) struct Maybe<'a, T>(pub(super) &'a mut Option<T>);

/// A string.
pub(super) struct Text<'a>(pub(super) &'a mut String);

/// A whole number.
pub(super) struct Number<'a>(pub(super) &'a mut i64);

/// Strings by name: those that the function wants.
pub(super) struct Texts<'a>(
    pub(super) &'a mut HashMap<String, String>,
    pub(super) fn(&str) -> bool,
);

/// An array of objects.
pub(super) struct Objects<'a, C, T>(pub(super) &'a mut C, pub(super) std::marker::PhantomData<T>);

/// An array of strings.
pub(super) struct Strings<'a, C>(pub(super) &'a mut C);

/// Whether an array has an element.
pub(super) struct IsFilled<'a>(pub(super) &'a mut bool);

/// The name of a field, in lower case.
struct Name;

/// What Go makes of the bytes of a string. `serde_json` hands half of a surrogate pair over as the three
/// bytes that it would have in UTF-8, if that could express it.
fn text(bytes: &[u8]) -> String {
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

impl<'de> DeserializeSeed<'de> for Name {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_bytes(self)
    }
}

impl Visitor<'_> for Name {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a field")
    }

    fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<String, E> {
        let bytes = bytes.get(..MAX_NAME).unwrap_or(bytes);
        Ok(text(bytes).chars().map(fold).collect())
    }
}

/// A value that may be `null`: then nothing is read.
macro_rules! or_null {
    ([$($generics:tt)*] $seed:ty, $deserialize:ident, $expecting:literal, { $($visits:tt)* }, $null:expr) => {
        impl<'de, $($generics)*> DeserializeSeed<'de> for $seed {
            type Value = ();

            fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
                deserializer.deserialize_option(self)
            }
        }

        impl<'de, $($generics)*> Visitor<'de> for $seed {
            type Value = ();

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str($expecting)
            }

            fn visit_none<E: Error>(self) -> Result<(), E> {
                let null: fn(Self) = $null;
                null(self);
                Ok(())
            }

            fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
                deserializer.$deserialize(self)
            }

            $($visits)*
        }
    };
}

or_null!([T: Object] Fields<'_, T>, deserialize_map, "an object", {
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key_seed(Name)? {
            self.0.field(&name, &mut map)?;
        }
        Ok(())
    }
}, |_| {});

or_null!([T: Object + Default] Maybe<'_, T>, deserialize_map, "an object", {
    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<(), A::Error> {
        Fields(self.0.get_or_insert_default()).visit_map(map)
    }
}, |seed| *seed.0 = None);

or_null!(
    [] Text<'_>,
    deserialize_bytes,
    "a string",
    {
        fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<(), E> {
            *self.0 = text(bytes);
            Ok(())
        }
    },
    |_| {}
);

or_null!(
    [] Number<'_>,
    deserialize_i64,
    "a whole number",
    {
        fn visit_i64<E: Error>(self, number: i64) -> Result<(), E> {
            *self.0 = number;
            Ok(())
        }

        fn visit_u64<E: Error>(self, number: u64) -> Result<(), E> {
            *self.0 = number.try_into().map_err(E::custom)?;
            Ok(())
        }
    },
    |_| {}
);

or_null!(
    [] Texts<'_>,
    deserialize_map,
    "an object of strings",
    {
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
            while let Some(key) = map.next_key_seed(Key)? {
                let mut value = String::new();
                map.next_value_seed(Text(&mut value))?;
                if (self.1)(&key) {
                    self.0.insert(key, value);
                }
            }
            Ok(())
        }
    },
    |seed| seed.0.clear()
);

or_null!([C: Collect<T>, T: Object + Default] Objects<'_, C, T>, deserialize_seq, "an array of objects", {
    fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<(), A::Error> {
        self.0.clear();
        loop {
            let mut element = T::default();
            if array.next_element_seed(Fields(&mut element))?.is_none() {
                return Ok(());
            }
            self.0.add(element).map_err(A::Error::custom)?;
        }
    }
}, |seed| seed.0.clear());

or_null!([C: Collect<String>] Strings<'_, C>, deserialize_seq, "an array of strings", {
    fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<(), A::Error> {
        self.0.clear();
        loop {
            let mut element = String::new();
            if array.next_element_seed(Text(&mut element))?.is_none() {
                return Ok(());
            }
            self.0.add(element).map_err(A::Error::custom)?;
        }
    }
}, |seed| seed.0.clear());

or_null!(
    [] IsFilled<'_>,
    deserialize_seq,
    "an array",
    {
        fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<(), A::Error> {
            *self.0 = false;
            while array.next_element::<IgnoredAny>()?.is_some() {
                *self.0 = true;
            }
            Ok(())
        }
    },
    |seed| *seed.0 = false
);

/// The key of a map, as it is written.
struct Key;

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
        Ok(text(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, PartialEq)]
    struct Sample {
        text: String,
        number: i64,
        filled: bool,
        inner: Option<Inner>,
    }

    #[derive(Debug, Default, PartialEq)]
    struct Inner {
        skip: String,
    }

    impl Object for Sample {
        fn field<'de, A: MapAccess<'de>>(
            &mut self,
            name: &str,
            map: &mut A,
        ) -> Result<(), A::Error> {
            match name {
                "text" => map.next_value_seed(Text(&mut self.text)),
                "number" => map.next_value_seed(Number(&mut self.number)),
                "filled" => map.next_value_seed(IsFilled(&mut self.filled)),
                "inner" => map.next_value_seed(Maybe(&mut self.inner)),
                _ => skip(map),
            }
        }
    }

    impl Object for Inner {
        fn field<'de, A: MapAccess<'de>>(
            &mut self,
            name: &str,
            map: &mut A,
        ) -> Result<(), A::Error> {
            match name {
                "skip" => map.next_value_seed(Text(&mut self.skip)),
                _ => skip(map),
            }
        }
    }

    fn read_text(document: &[u8]) -> Option<String> {
        read::<Sample>(document).ok().map(|sample| sample.text)
    }

    #[test]
    fn strings_are_made_unicode() {
        for (document, expected) in [
            (&br#"{"text": "a"}"#[..], "a"),
            (br#"{"text": "\u00e9\ud83d\ude00"}"#, "\u{e9}\u{1f600}"),
            (b"{\"text\": \"caf\xe9!\"}", "caf\u{fffd}!"),
            (b"{\"caf\xe9\": 1, \"text\": \"a\"}", "a"),
            (br#"{"\ud83d": 1, "text": "a"}"#, "a"),
            (br#"{"author": "\ud83d", "text": "a"}"#, "a"),
            (b"{\"author\": \"caf\xe9\", \"text\": \"a\"}", "a"),
        ] {
            assert_eq!(read_text(document).as_deref(), Some(expected));
        }
        let half = read_text(br#"{"text": "\ud83d"}"#).unwrap();
        assert!(half.contains(char::REPLACEMENT_CHARACTER), "{half:?}");
    }

    #[test]
    fn names_match_in_any_case_and_the_last_counts() {
        for (document, text, skip) in [
            (r#"{"TEXT": "a"}"#, "a", None),
            (r#"{"teXt": "a", "text": "b"}"#, "b", None),
            (r#"{"text": "b", "Text": null}"#, "b", None),
            (r#"{"text": null}"#, "", None),
            ("{\"inner\": {\"\u{17f}\u{212a}ip\": \"c\"}}", "", Some("c")),
            (r#"{"inner": {"skip": "c"}, "Inner": {}}"#, "", Some("c")),
            (r#"{"inner": {"skip": "c"}, "Inner": null}"#, "", None),
            ("null", "", None),
        ] {
            let sample: Sample = read(document.as_bytes()).unwrap();
            assert_eq!(sample.text, text, "{document}");
            let inner = sample.inner.map(|inner| inner.skip);
            assert_eq!(inner.as_deref(), skip, "{document}");
        }
    }

    #[test]
    fn what_is_not_asked_for_may_be_anything() {
        let nested = |depth| {
            let (open, close) = ("[".repeat(depth), "]".repeat(depth));
            format!(r#"{{"author": {open}{close}, "text": "a"}}"#)
        };
        for depth in [0, 1, 200, 10_000] {
            let document = nested(depth).replace(": ,", ": 1e999,");
            assert_eq!(read_text(document.as_bytes()).as_deref(), Some("a"));
        }
        for document in [
            "[]",
            "1",
            "{",
            r#"{"text": 1}"#,
            r#"{"number": "1"}"#,
            "{} {}",
        ] {
            assert_eq!(read_text(document.as_bytes()), None, "{document}");
        }
        let sample: Sample = read(br#"{"filled": [null, 1, {}], "number": -3}"#).unwrap();
        assert!(sample.filled && sample.number == -3);
    }
}
