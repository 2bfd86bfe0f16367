//! The swap: a container is moved onto another chain before it is created.

use nri::HandlerResult;

use crate::policy::Doubt;
use crate::unpack::{Move, State, SwapDeadlines, SwapOutcome, is_on_host};

use super::Session;
use super::creation::Creation;
use super::decision::{Did, Verdict};

impl Session {
    /// Moves a container whose chain is in use onto another chain, so that its first creation succeeds. If that is
    /// not possible, the container may be rejected, and the next creation gets the right chain.
    pub(super) async fn moved(
        &self,
        creation: &Creation<'_>,
        wanted: Move,
        until: SwapDeadlines,
        state: Option<State>,
    ) -> HandlerResult {
        let is_mixed = state == Some(State::Mixed);
        let reason = match (is_mixed, is_on_host(&wanted.onto)) {
            (true, true) => {
                "its chain had host-unpacked layers on guest-pulled layers of another image; the guest does not \
                 pull this image: the host has unpacked it again from the lowest layer"
            }
            (true, false) => "its chain had host-unpacked layers on guest-pulled layers",
            _ => "it was unpacked on the host, and is in use",
        };
        let doubt = if is_mixed {
            Doubt::Broken
        } else {
            Doubt::Unready
        };
        match self.node.engine.swap(wanted, until).await {
            SwapOutcome::Done => {
                creation.say(Verdict::Moved, state, Did::Swapped, reason);
                Ok(())
            }
            SwapOutcome::Untouched(why) => {
                creation.doubted(doubt, state, &format!("{reason}; {why}"))
            }
            SwapOutcome::Lost => {
                creation.doubted(Doubt::Broken, state, "its snapshot was lost in the swap")
            }
        }
    }
}
