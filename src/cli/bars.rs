//! Progress bars of `ensure`, one for each image, where standard error is a terminal. Elsewhere they are hidden.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::printable::printable;
use crate::unpack::Ticket;

use super::short;

/// An unpack that finishes within this time gets no bar.
const WORTH_A_BAR: Duration = Duration::from_millis(200);

/// The layers, the amount of bytes, and the rate. The rate is cut at the width of the terminal.
const TEMPLATE: &str = "{prefix}  {bar:16} {pos}/{len} layers  {wide_msg}";

/// The characters for done, in progress, and to do. ASCII has the same width on every terminal.
const CHARACTERS: &str = "=>-";

/// The bars of one command.
pub(super) struct Bars(MultiProgress);

impl Bars {
    pub(super) fn new() -> Self {
        let target = match std::io::stderr().is_terminal() {
            true => ProgressDrawTarget::stderr(),
            false => ProgressDrawTarget::hidden(),
        };
        Self(MultiProgress::with_draw_target(target))
    }

    /// Shows the progress of an unpack until it ends.
    pub(super) async fn follow(&self, image: &str, ticket: &mut Ticket) {
        let began = std::time::Instant::now();
        if tokio::time::timeout(WORTH_A_BAR, ticket.outcome())
            .await
            .is_ok()
        {
            return;
        }
        // The template is a constant, and a test parses it.
        let style = ProgressStyle::with_template(TEMPLATE)
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .progress_chars(CHARACTERS);
        let bar = self.0.add(ProgressBar::new(0).with_style(style));
        bar.set_prefix(printable(short::name(image)));
        loop {
            let progress = ticket.progress();
            bar.set_length(progress.layers.max(1) as u64);
            bar.set_position(progress.ready_layers as u64);
            bar.set_message(amount(progress.bytes, began.elapsed()));
            if progress.outcome.is_some() || !ticket.changed().await {
                break;
            }
        }
        bar.finish_and_clear();
    }

    /// Runs `print` while the bars are hidden, so that its output stays on the screen.
    pub(super) fn aside<T>(&self, print: impl FnOnce() -> T) -> T {
        self.0.suspend(print)
    }
}

/// Returns an amount with its rate, such as «12.5 MiB, 3.1 MiB/s».
fn amount(bytes: u64, took: Duration) -> String {
    let rate = bytes as f64 / took.as_secs_f64().max(0.001);
    let human = |bytes: u64| indicatif::HumanBytes(bytes).to_string();
    format!("{}, {}/s", human(bytes), human(rate as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_amount_is_shown_with_its_rate() {
        let text = amount(10 << 20, Duration::from_secs(2));
        assert_eq!(text, "10.00 MiB, 5.00 MiB/s");
        assert_eq!(amount(0, Duration::ZERO), "0 B, 0 B/s");
    }

    #[test]
    fn the_template_is_valid() {
        assert!(ProgressStyle::with_template(TEMPLATE).is_ok());
    }
}
