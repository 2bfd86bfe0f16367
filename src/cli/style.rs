//! Colours and line width of the output on a terminal.

use std::io::IsTerminal;

use anstyle::AnsiColor;

/// The meaning of a colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    Good,
    Attention,
    Bad,
    Quiet,
}

/// Returns the text, in colour if standard output takes colour.
pub(super) fn painted(style: Style, text: &str) -> String {
    match takes_colour() {
        true => in_colour(style, text),
        false => text.to_owned(),
    }
}

/// Whether standard output takes colour: it is a terminal, and neither `NO_COLOR` nor `TERM=dumb` is set.
pub(super) fn takes_colour() -> bool {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    std::io::stdout().is_terminal() && !is_set("NO_COLOR") && !is_dumb
}

/// Returns the number of columns of standard output, if it is a terminal.
pub(super) fn width() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok()?;
    (size.ws_col > 0).then_some(size.ws_col.into())
}

/// Returns text that is wrapped between words at the width of the terminal, each line after its indent. Without a
/// terminal it is one line.
pub(super) fn wrapped(text: &str, first: &str, others: &str) -> String {
    match width() {
        Some(width) => {
            let options = textwrap::Options::new(width)
                .initial_indent(first)
                .subsequent_indent(others)
                // The terminal breaks a path or a digest that is too long, so that it can be copied.
                .break_words(false)
                .word_splitter(textwrap::WordSplitter::NoHyphenation);
            textwrap::fill(text, options)
        }
        None => format!("{first}{text}"),
    }
}

fn in_colour(style: Style, text: &str) -> String {
    let style = match style {
        Style::Good => AnsiColor::Green.on_default(),
        Style::Attention => AnsiColor::Yellow.on_default(),
        Style::Bad => AnsiColor::Red.on_default().bold(),
        Style::Quiet => anstyle::Style::new().dimmed(),
    };
    format!("{style}{text}{style:#}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colour_ends_after_the_text() {
        let text = in_colour(Style::Good, "ready");
        assert_eq!(text, "\u{1b}[32mready\u{1b}[0m");
    }
}
