//! The swap: a container is moved onto another chain before it is created.

use nri::HandlerResult;

use crate::policy::Doubt;
use crate::unpack::{Move, State, SwapDeadlines, SwapOutcome, is_on_host};

use super::Session;
use super::creation::Creation;
use super::decision::{Did, Verdict};

impl Session {
    /// A container whose chain cannot be repaired under it is moved onto another, here and now, so
    /// that its first attempt gets the right one; else rejected, and the next attempt gets it.
    pub(super) async fn moved(
        &self,
        creation: &Creation<'_>,
        wanted: Move,
        until: SwapDeadlines,
        state: Option<State>,
    ) -> HandlerResult {
        let is_mixed = state == Some(State::Mixed);
        let stood_on = match (is_mixed, is_on_host(&wanted.onto)) {
            (true, true) => {
                "layers that the host had unpacked lay on layers that were left to the guest for another \
                 image; this image is not for the guest: the host has unpacked all of it once more"
            }
            (true, false) => {
                "layers that the host had unpacked lay on layers that were left to the guest"
            }
            _ => "it was unpacked on the host, and is in use",
        };
        let doubt = if is_mixed {
            Doubt::Broken
        } else {
            Doubt::Unready
        };
        match self.node.engine.swap(wanted, until).await {
            SwapOutcome::Done => {
                creation.say(Verdict::Moved, state, Did::Swapped, stood_on);
                Ok(())
            }
            SwapOutcome::Untouched(why) => {
                creation.doubted(doubt, state, &format!("{stood_on}; {why}"))
            }
            SwapOutcome::Lost => {
                creation.doubted(Doubt::Broken, state, "its snapshot was lost in the swap")
            }
        }
    }
}
