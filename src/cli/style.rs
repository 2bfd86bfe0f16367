//! Colour, on a terminal whose user has not refused it.

use std::io::IsTerminal;

use anstyle::AnsiColor;

/// What a word is to say by its colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    Good,
    Attention,
    Bad,
    Quiet,
}

/// The text, in colour where standard output takes it: a terminal, and no `NO_COLOR`.
pub(super) fn painted(style: Style, text: &str) -> String {
    match takes_colour() {
        true => in_colour(style, text),
        false => text.to_owned(),
    }
}

/// Whether standard output takes colour.
pub(super) fn takes_colour() -> bool {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    std::io::stdout().is_terminal() && !is_set("NO_COLOR") && !is_dumb
}

/// How many columns standard output has, where it is a terminal.
pub(super) fn width() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok()?;
    (size.ws_col > 0).then_some(size.ws_col.into())
}

/// Text whose lines end between words where the terminal does, each after its indent; elsewhere one line.
pub(super) fn wrapped(text: &str, first: &str, others: &str) -> String {
    match width() {
        Some(width) => {
            let options = textwrap::Options::new(width)
                .initial_indent(first)
                .subsequent_indent(others)
                // A path or a digest that is too long is for the terminal to break.
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
    fn colour_ends_where_the_text_does() {
        let text = in_colour(Style::Good, "ready");
        assert_eq!(text, "\u{1b}[32mready\u{1b}[0m");
    }
}
