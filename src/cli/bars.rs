//! A bar for each image that is worked on, where standard error is a terminal; nothing elsewhere.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::printable::printable;
use crate::unpack::Ticket;

use super::short;

/// Work that is over sooner than this needs no bar.
const WORTH_A_BAR: Duration = Duration::from_millis(200);

/// Layers, what they amount to, and how fast they go; the last is cut where the terminal ends.
const TEMPLATE: &str = "{prefix}  {bar:16} {pos}/{len} layers  {wide_msg}";

/// Done, at work, to do. Plain ones: their width is known to everybody.
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

    /// Shows how far the work is, until it ends.
    pub(super) async fn follow(&self, image: &str, ticket: &mut Ticket) {
        let began = std::time::Instant::now();
        if tokio::time::timeout(WORTH_A_BAR, ticket.outcome())
            .await
            .is_ok()
        {
            return;
        }
        // A template that is not understood would be one of ours.
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

    /// Prints something beside the bars.
    pub(super) fn aside<T>(&self, print: impl FnOnce() -> T) -> T {
        self.0.suspend(print)
    }
}

/// «12.5 MiB, 3.1 MiB/s».
fn amount(bytes: u64, took: Duration) -> String {
    let rate = bytes as f64 / took.as_secs_f64().max(0.001);
    let human = |bytes: u64| indicatif::HumanBytes(bytes).to_string();
    format!("{}, {}/s", human(bytes), human(rate as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_amount_has_a_rate() {
        let text = amount(10 << 20, Duration::from_secs(2));
        assert_eq!(text, "10.00 MiB, 5.00 MiB/s");
        assert_eq!(amount(0, Duration::ZERO), "0 B, 0 B/s");
    }

    #[test]
    fn the_template_is_one() {
        assert!(ProgressStyle::with_template(TEMPLATE).is_ok());
    }
}
