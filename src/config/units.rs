//! Checked amounts: a duration, a number of workers, a share. Each carries its range and the reason
//! for it.

use std::{num::NonZeroUsize, str::FromStr, time::Duration};

use serde::Deserialize;

use super::InvalidValue;

/// How long a hook may wait: a millisecond to a minute.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(try_from = "String")]
pub struct HookWait(Duration);

impl HookWait {
    /// Less would be over before any answer from containerd.
    const MIN: Duration = Duration::from_millis(1);
    /// More than NRI's request timeout is ever sensibly set to: the whole node stands still for so
    /// long.
    const MAX: Duration = Duration::from_secs(60);

    /// The wait as a duration.
    pub fn as_duration(self) -> Duration {
        self.0
    }
}

impl TryFrom<String> for HookWait {
    type Error = InvalidValue;

    fn try_from(text: String) -> Result<Self, InvalidValue> {
        let wait = duration(&text, "\"500ms\" or \"2s\"")?;
        if (Self::MIN..=Self::MAX).contains(&wait) {
            return Ok(Self(wait));
        }
        Err(InvalidValue::new(format!(
            "{text:?} is out of range: write a duration from \"1ms\" to \"60s\""
        )))
    }
}

/// How many of a kind are worked on at once: 1 to 64.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(try_from = "i64")]
pub struct Workers(NonZeroUsize);

impl Workers {
    /// Far beyond what one disk gains from; a larger number is a slip of the pen that would choke
    /// the node.
    const MAX: usize = 64;

    /// The number as a count.
    pub fn count(self) -> NonZeroUsize {
        self.0
    }
}

impl TryFrom<i64> for Workers {
    type Error = InvalidValue;

    fn try_from(number: i64) -> Result<Self, InvalidValue> {
        let count = usize::try_from(number)
            .ok()
            .filter(|count| *count <= Self::MAX)
            .and_then(NonZeroUsize::new);
        count.map(Self).ok_or_else(|| {
            InvalidValue::new(format!(
                "{number} is out of range: write 1 to {}",
                Self::MAX
            ))
        })
    }
}

/// A share in whole percent, 0 to 99, written `"15%"`.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd)]
#[serde(try_from = "String")]
pub struct Percent(u8);

impl Percent {
    /// No file system is all free, so a demand for it would only be a roundabout «never».
    const MAX: u8 = 99;

    /// The share, 0 to 99.
    pub fn as_u8(self) -> u8 {
        self.0
    }
}

impl TryFrom<String> for Percent {
    type Error = InvalidValue;

    fn try_from(text: String) -> Result<Self, InvalidValue> {
        let digits = text
            .strip_suffix('%')
            .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
        let percent = digits
            .and_then(|digits| u8::from_str(digits).ok())
            .filter(|percent| *percent <= Self::MAX);
        percent.map(Self).ok_or_else(|| {
            InvalidValue::new(format!(
                "{text:?} is not a share: write \"0%\" to \"{}%\", in whole percent",
                Self::MAX
            ))
        })
    }
}

/// How often something is done without a cause: a minute to a week.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(try_from = "String")]
pub struct Interval(Duration);

impl Interval {
    /// A look at all images takes a second or more on a full node.
    const MIN: Duration = Duration::from_secs(60);
    /// Longer is as good as never, which is what leaving it out says.
    const MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);

    /// From the end of one to the beginning of the next.
    pub fn as_duration(self) -> Duration {
        self.0
    }
}

impl TryFrom<String> for Interval {
    type Error = InvalidValue;

    fn try_from(text: String) -> Result<Self, InvalidValue> {
        let interval = duration(&text, "\"30m\" or \"6h\"")?;
        if (Self::MIN..=Self::MAX).contains(&interval) {
            return Ok(Self(interval));
        }
        Err(InvalidValue::new(format!(
            "{text:?} is out of range: write a duration from \"1m\" to \"7d\""
        )))
    }
}

fn duration(text: &str, examples: &str) -> Result<Duration, InvalidValue> {
    humantime::parse_duration(text).map_err(|error| {
        InvalidValue::new(format!(
            "{text:?} is not a duration: {error}; write it like {examples}"
        ))
    })
}
