//! Reads JSON as containerd does with Go's `encoding/json`. The name of a field matches in any case, `null`
//! leaves a field unset, the last of duplicate fields counts, and invalid Unicode in a string is replaced.
//! Fields that are not read are skipped at any depth and take no memory. Pure.

mod text;

use std::collections::HashMap;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use text::{Key, field_name, text};

/// An object of which some fields are read.
pub(super) trait Object {
    /// Reads the value of a field, or skips it with [`skip`]. `name` is in lower case.
    fn field<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error>;
}

/// Takes the elements of an array one by one.
pub(super) trait Collect<T> {
    /// Removes all elements, at the begin of an array.
    fn clear(&mut self);
    /// Adds the next element. An error rejects the whole document.
    fn add(&mut self, element: T) -> Result<(), String>;
}

/// Reads a document that is one object.
pub(super) fn read<T: Object + Default>(bytes: &[u8]) -> Result<T, serde_json::Error> {
    let mut object = T::default();
    read_into(&mut object, bytes)?;
    Ok(object)
}

/// Reads a document that is one object into an existing object.
pub(super) fn read_into<T: Object>(object: &mut T, bytes: &[u8]) -> Result<(), serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    Fields(object).deserialize(&mut deserializer)?;
    deserializer.end()
}

/// Skips the value of a field.
pub(super) fn skip<'de, A: MapAccess<'de>>(map: &mut A) -> Result<(), A::Error> {
    map.next_value::<IgnoredAny>().map(drop)
}

/// Skips the value of a field and returns whether it is `null`.
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

/// An object of strings; those are kept whose key and value the function accepts.
pub(super) struct Texts<'a>(
    pub(super) &'a mut HashMap<String, String>,
    pub(super) fn(&str, &str) -> bool,
);

/// An array of objects.
pub(super) struct Objects<'a, C, T>(pub(super) &'a mut C, pub(super) std::marker::PhantomData<T>);

/// An array of strings.
pub(super) struct Strings<'a, C>(pub(super) &'a mut C);

/// Whether an array has any element.
pub(super) struct IsFilled<'a>(pub(super) &'a mut bool);

/// Implements a seed for a value that may be `null`. For `null` it calls `$null`.
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
        while let Some(name) = map.next_key_seed(Key(field_name))? {
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
            while let Some(key) = map.next_key_seed(Key(text))? {
                let mut value = String::new();
                map.next_value_seed(Text(&mut value))?;
                if (self.1)(&key, &value) {
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

#[cfg(test)]
mod tests;
