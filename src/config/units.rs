//! Checked amounts: durations, a number of workers, a share. Each type states its range and the reason.

use std::{num::NonZeroUsize, str::FromStr, time::Duration};

use serde::Deserialize;

use super::InvalidValue;

/// The time that a hook may wait: 1 ms to 60 s.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(try_from = "String")]
pub struct HookWait(Duration);

impl HookWait {
    /// A shorter wait would end before any answer from containerd.
    const MIN: Duration = Duration::from_millis(1);
    /// Longer than any sensible request timeout of NRI. No other pod or container of the node is created
    /// during the wait.
    const MAX: Duration = Duration::from_secs(60);

    /// Returns the wait as a duration.
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

/// The number of images or layers that are unpacked at once: 1 to 64.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(try_from = "i64")]
pub struct Workers(NonZeroUsize);

impl Workers {
    /// More parallel work than any disk benefits from. A larger number is a typing error that would overload
    /// the node.
    const MAX: usize = 64;

    /// Returns the number as a count.
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
    /// A file system is never free to 100 %, so that value would only mean «never».
    const MAX: u8 = 99;

    /// Returns the share, 0 to 99.
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

/// The interval of a periodic action: 1 minute to 7 days.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(try_from = "String")]
pub struct Interval(Duration);

impl Interval {
    /// A shorter interval costs too much: a reconcile of all images takes a second or more on a full node.
    const MIN: Duration = Duration::from_secs(60);
    /// A longer interval is as good as none, and none is what an unset key means.
    const MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);

    /// Returns the time from the end of one action to the beginning of the next.
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

/// Parses a duration like `1h 30m`. humantime panics where the parts are 2⁶⁴ s together. A text of this length has at most
/// five numbers of so many digits with a unit, each below 3.2·10¹⁷ s, and the shorter ones are less.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    const MOST_BYTES: usize = 64;
    const MOST_DIGITS: usize = 10;
    let mut numbers = text.split(|c: char| !c.is_ascii_digit());
    if text.len() > MOST_BYTES {
        return Err(format!("it has more than {MOST_BYTES} bytes"));
    }
    if numbers.any(|number| number.len() > MOST_DIGITS) {
        return Err(format!("it has a number of more than {MOST_DIGITS} digits"));
    }
    humantime::parse_duration(text).map_err(|e| e.to_string())
}

fn duration(text: &str, examples: &str) -> Result<Duration, InvalidValue> {
    parse_duration(text).map_err(|error| {
        InvalidValue::new(format!(
            "{text:?} is not a duration: {error}; write it like {examples}"
        ))
    })
}
