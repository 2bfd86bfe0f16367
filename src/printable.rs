//! Text that others wrote, fit for a terminal and a log: on one line, without control characters and
//! bounded.
//!
//! Names, annotations and error texts come from pods and images. Each place that shows text (the log,
//! the command line, the error that a hook returns) passes it through here.

use std::borrow::Cow;
use std::fmt::{self, Display, Write};

/// Bytes of one text in a log line or on a terminal. The longest text of our own, an error that names
/// an image, a layer and what to do, takes less than half of it.
const MAX_TEXT: usize = 2048;

/// What stands where a text was cut.
const CUT: &str = "…";

/// The text on one line, bounded.
pub(crate) fn printable(text: impl Display) -> String {
    printable_within(MAX_TEXT, text)
}

/// The same with at most so many bytes. Formatting ends with the room: a text of many megabytes is not
/// held as a whole.
pub(crate) fn printable_within(room: usize, text: impl Display) -> String {
    let mut bounded = Bounded {
        text: String::new(),
        room,
        is_cut: false,
    };
    // The only error is that the room is used up.
    let _ = write!(bounded, "{text}");
    let Bounded {
        mut text, is_cut, ..
    } = bounded;
    if is_cut {
        let fits = |text: &str| text.len() + CUT.len() <= room;
        while !fits(&text) && text.pop().is_some() {}
        text += CUT;
    }
    text
}

/// JSON that is shown on a terminal: serde leaves what ASCII has no control character for. Outside of
/// its strings JSON has none of these characters.
pub(crate) fn printable_json(json: &str) -> Cow<'_, str> {
    let is_shown = |c: char| c == '\n' || is_printable(c);
    if json.chars().all(is_shown) {
        return Cow::Borrowed(json);
    }
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        if is_shown(c) {
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

/// Whether a character stands for itself: no control or format character (bidi overrides are among
/// them), no separator but the space, nothing that Unicode has not assigned.
fn is_printable(c: char) -> bool {
    match c.is_ascii() {
        true => c == ' ' || c.is_ascii_graphic(),
        false => c.escape_debug().eq([c]),
    }
}

/// Takes text up to its room.
struct Bounded {
    text: String,
    room: usize,
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
            if self.text.len() > self.room {
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
    fn what_a_terminal_or_a_log_takes_for_a_command_is_escaped() {
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
        for (room, text, expected) in [
            (4, "abcd", "abcd"),
            (4, "abcde", "a…"),
            (4, "äöü", "…"),
            (8, "äöü\n\n\n", "äö…"),
            (3, "\u{1b}", "…"),
        ] {
            assert_eq!(printable_within(room, text), expected, "{text:?}");
        }
        let long = printable("\u{202e}".repeat(100_000));
        assert!(long.len() <= MAX_TEXT && long.ends_with(CUT), "{long}");
    }

    #[test]
    fn what_does_not_fit_is_not_formatted() {
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
    fn json_stays_the_same_json() {
        for value in ["plain ä", "\u{9b}\u{7f}\u{202e}\u{e0041}\n\u{1b}"] {
            let json = serde_json::to_string_pretty(&[value]).unwrap();
            let shown = printable_json(&json);
            assert!(
                shown.chars().all(|c| c == '\n' || is_printable(c)),
                "{shown}"
            );
            let back: Vec<String> = serde_json::from_str(&shown).unwrap();
            assert_eq!(back, [value]);
        }
    }
}
