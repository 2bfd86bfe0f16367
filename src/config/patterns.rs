//! Patterns over image references.

use std::{cmp::Ordering, fmt, str::FromStr};

use globset::{Glob, GlobMatcher};
use serde::{
    Deserialize, Deserializer,
    de::{self, Visitor},
};

use super::InvalidValue;

/// Bytes of a pattern: more than a reference has, which is at most 255 of a name, 128 of a tag, and a digest. The
/// matcher of a pattern of any length may not fit into the memory that its crate allows, and panics then.
const MAX_PATTERN: usize = 1024;

/// Groups `{a,b}` of a pattern, nested or not: each is up to three levels of the regular expression that is made of
/// it, which may have 250.
const MAX_GROUPS: usize = 64;

/// A shell pattern that a whole reference has to match: `docker.io/library/*`, `*/pause:*`,
/// `{a,b}.example/*`. A `*` crosses slashes, since references nest as deep as their registry likes.
#[derive(Clone, Debug)]
pub struct ImagePattern(GlobMatcher);

impl ImagePattern {
    /// The pattern that every reference matches.
    pub(super) fn any() -> Self {
        Self(
            Glob::new("*")
                .expect("a lone asterisk is a pattern")
                .compile_matcher(),
        )
    }

    /// Whether the whole of `reference` matches.
    pub fn matches(&self, reference: &str) -> bool {
        self.0.is_match(reference)
    }

    /// The pattern as it was written.
    pub fn as_str(&self) -> &str {
        self.0.glob().glob()
    }
}

impl PartialEq for ImagePattern {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for ImagePattern {}

impl PartialOrd for ImagePattern {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ImagePattern {
    fn cmp(&self, other: &Self) -> Ordering {
        self.as_str().cmp(other.as_str())
    }
}

impl FromStr for ImagePattern {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        if text.is_empty() {
            return Err(InvalidValue::new(
                "an empty pattern matches no image: write \"*\" for all of them",
            ));
        }
        if text.len() > MAX_PATTERN {
            return Err(InvalidValue::new(format!(
                "a pattern of {} bytes: no reference is that long, write at most {MAX_PATTERN}",
                text.len()
            )));
        }
        if text.matches('{').count() > MAX_GROUPS {
            return Err(InvalidValue::new(format!(
                "a pattern with more than {MAX_GROUPS} groups {{…}}: write several patterns"
            )));
        }
        match Glob::new(text) {
            Ok(glob) => Ok(Self(glob.compile_matcher())),
            Err(error) => Err(InvalidValue::new(format!(
                "{text:?} is not a pattern: {}",
                error.kind()
            ))),
        }
    }
}

/// By hand, because patterns come in arrays, and an error gets the position of its own element,
/// rather than the array's, only if it is raised while that element is being read.
impl<'de> Deserialize<'de> for ImagePattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;

        impl Visitor<'_> for Text {
            type Value = ImagePattern;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<ImagePattern, E> {
                text.parse().map_err(E::custom)
            }
        }

        deserializer.deserialize_str(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_as_long_as_a_reference_may_be() {
        for part in ["?", "*", "[!a]", "a,", "é"] {
            let most = part.repeat(MAX_PATTERN / part.len());
            assert!(most.parse::<ImagePattern>().is_ok(), "{part}");
            let error = part.repeat(150_000).parse::<ImagePattern>().unwrap_err();
            assert!(error.to_string().contains("at most 1024"), "{error}");
        }
        let nested = |n: usize| format!("{}a{}", "x{y,".repeat(n), "}".repeat(n));
        assert!(nested(MAX_GROUPS).parse::<ImagePattern>().is_ok());
        let error = nested(MAX_GROUPS + 1).parse::<ImagePattern>().unwrap_err();
        assert!(error.to_string().contains("more than 64 groups"), "{error}");
    }
}
