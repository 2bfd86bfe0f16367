//! Makes untrusted text safe for a terminal and a log: one line, without control characters, of bounded length.
//!
//! Names, annotations and error texts come from pods and images. All output (the log, the command line, the error that
//! a hook returns) goes through this module.

use std::borrow::Cow;
use std::fmt::{self, Display, Write};

/// The limit of one text in bytes. The longest text of the plugin, an error with an image, a layer and a remedy, has
/// less than half of it.
const MAX_TEXT: usize = 2048;

/// Marks the end of a text that was cut.
const CUT: &str = "…";

/// Returns the text on one line, with at most [`MAX_TEXT`] bytes.
pub(crate) fn printable(text: impl Display) -> String {
    printable_within(MAX_TEXT, text)
}

/// Returns the text on one line, with at most `limit` bytes. Formatting stops at the limit, so a text of many megabytes
/// is never in memory as a whole.
pub(crate) fn printable_within(limit: usize, text: impl Display) -> String {
    let mut bounded = Bounded {
        text: String::new(),
        limit,
        is_cut: false,
    };
    // The only error is that the limit is reached.
    let _ = write!(bounded, "{text}");
    let Bounded {
        mut text, is_cut, ..
    } = bounded;
    if is_cut {
        let fits = |text: &str| text.len() + CUT.len() <= limit;
        while !fits(&text) && text.pop().is_some() {}
        text += CUT;
    }
    text
}

/// Returns JSON that is safe for a terminal. serde escapes only the control characters of ASCII; this function escapes
/// the others. They occur only in strings.
pub(crate) fn printable_json(json: &str) -> Cow<'_, str> {
    let is_safe = |c: char| c == '\n' || is_printable(c);
    if json.chars().all(is_safe) {
        return Cow::Borrowed(json);
    }
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        if is_safe(c) {
            text.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            // Writing to a string does not fail.
            let _ = write!(text, "\\u{unit:04x}");
        }
    }
    Cow::Owned(text)
}

/// Whether a character is shown unescaped. Control and format characters (also bidi overrides), separators other than
/// the space, and unassigned code points are escaped.
fn is_printable(c: char) -> bool {
    match c.is_ascii() {
        true => c == ' ' || c.is_ascii_graphic(),
        false => c.escape_debug().eq([c]),
    }
}

/// A writer that keeps text up to its limit.
struct Bounded {
    text: String,
    limit: usize,
    is_cut: bool,
}

impl Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            let before = self.text.len();
            match is_printable(c) {
                true => self.text.push(c),
                false => self.text.extend(c.escape_debug()),
            }
            if self.text.len() > self.limit {
                self.text.truncate(before);
                self.is_cut = true;
                return Err(fmt::Error);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_and_format_characters_are_escaped() {
        for (text, expected) in [
            ("r.example/app:1", "r.example/app:1"),
            (
                "a \"quoted\" C:\\path, «ä» …",
                "a \"quoted\" C:\\path, «ä» …",
            ),
            ("a\nERROR b", "a\\nERROR b"),
            ("\r\t\0", "\\r\\t\\0"),
            ("\u{1b}[2J\u{7}", "\\u{1b}[2J\\u{7}"),
            ("\u{9b}31m\u{7f}", "\\u{9b}31m\\u{7f}"),
            ("a\u{202e}b\u{2066}c", "a\\u{202e}b\\u{2066}c"),
            ("a\u{200b}\u{feff}\u{2028}", "a\\u{200b}\\u{feff}\\u{2028}"),
        ] {
            assert_eq!(printable(text), expected);
        }
    }

    #[test]
    fn a_text_is_cut_between_characters() {
        for (limit, text, expected) in [
            (4, "abcd", "abcd"),
            (4, "abcde", "a…"),
            (4, "äöü", "…"),
            (8, "äöü\n\n\n", "äö…"),
            (3, "\u{1b}", "…"),
        ] {
            assert_eq!(printable_within(limit, text), expected, "{text:?}");
        }
        let long = printable("\u{202e}".repeat(100_000));
        assert!(long.len() <= MAX_TEXT && long.ends_with(CUT), "{long}");
    }

    #[test]
    fn formatting_stops_at_the_limit() {
        struct Endless;
        impl Display for Endless {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                loop {
                    f.write_str("more ")?;
                }
            }
        }
        assert_eq!(printable(Endless).len(), MAX_TEXT);
    }

    #[test]
    fn printable_json_has_the_same_value() {
        for value in ["plain ä", "\u{9b}\u{7f}\u{202e}\u{e0041}\n\u{1b}"] {
            let json = serde_json::to_string_pretty(&[value]).unwrap();
            let printable = printable_json(&json);
            assert!(
                printable.chars().all(|c| c == '\n' || is_printable(c)),
                "{printable}"
            );
            let parsed: Vec<String> = serde_json::from_str(&printable).unwrap();
            assert_eq!(parsed, [value]);
        }
    }
}
