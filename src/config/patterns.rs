//! Patterns over image references.

use std::{cmp::Ordering, fmt, str::FromStr};

use globset::{Glob, GlobMatcher};
use serde::{
    Deserialize, Deserializer,
    de::{self, Visitor},
};

use super::InvalidValue;

/// The maximum length of a pattern in bytes. It is more than a reference has: at most 255 bytes of a name, 128 of a
/// tag, and a digest. The matcher of a longer pattern may exceed the memory limit of its crate, which then panics.
const MAX_PATTERN: usize = 1024;

/// The maximum number of groups `{a,b}` in a pattern, nested or not. Each group makes up to three levels of the
/// regular expression that the pattern becomes, and the expression may have 250 levels.
const MAX_GROUPS: usize = 64;

/// A shell pattern that must match the whole reference: `docker.io/library/*`, `*/pause:*`,
/// `{a,b}.example/*`. A `*` also matches slashes, since a repository's path may have any depth.
#[derive(Clone, Debug)]
pub struct ImagePattern(GlobMatcher);

impl ImagePattern {
    /// Returns the pattern that matches every reference.
    pub(super) fn any() -> Self {
        Self(
            Glob::new("*")
                .expect("a lone asterisk is a pattern")
                .compile_matcher(),
        )
    }

    /// Whether the pattern matches the whole of `reference`.
    pub fn matches(&self, reference: &str) -> bool {
        self.0.is_match(reference)
    }

    /// Returns the pattern as it was written.
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
                "a pattern of {} bytes is longer than any image reference: write at most {MAX_PATTERN}",
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

/// Implemented by hand because patterns stand in arrays. An error gets the position of its element, instead
/// of the array's, only if it is raised while that element is read.
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
    fn patterns_are_bounded_in_length_and_groups() {
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
