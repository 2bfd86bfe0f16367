//! `ensure(image, snapshotter)`: reads the status of the image's chain, plans the fewest steps that make it `ready`,
//! and runs them.
//!
//! [`State`] and the plan do no I/O. A flight runs the plan. The [`Engine`] runs one flight per snapshotter and chain;
//! the flight continues without its callers. This part knows nothing of NRI.

mod admit;
mod chain;
mod engine;
mod flight;
mod inspect;
mod layer;
mod purge;
mod ready_cache;
mod repair;
mod schedule;
mod serve;
mod snapshotter;
mod target;
#[cfg(test)]
mod tests;

pub use admit::{Admission, Answer, Candidate, CandidateKind, found};
pub use chain::action::Action;
pub use chain::error::Error;
pub use chain::plan::{Planned, StepKind};
#[cfg(test)]
pub(crate) use chain::profile::tests::proxied;
pub use chain::profile::{Profile, Repair};
pub use chain::state::{ChainStatus, Rules, State};
pub use engine::Engine;
pub use inspect::ImageStatus;
pub use layer::fallback::{ContentFallback, FallbackSource};
pub use layer::pull::Registries;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use layer::rebuild::fuzz;
pub(crate) use layer::rebuild::{SOURCE as REBUILT_FROM, attributes_are_seen};
pub use purge::{Fate, Leftover, LeftoverKind};
pub use ready_cache::ParentChain;
pub use repair::swap::{LEAST_WAIT, SwapDeadlines, SwapOutcome};
pub use schedule::permits::Parallel;
pub use schedule::priority::Urgency;
pub use schedule::progress::{Done, Outcome, Progress, Ticket};
pub use snapshotter::lease_owner::Role;
pub use snapshotter::listing::{Listing, Lists};
pub use snapshotter::sentinels::Look;
pub use target::label_policy::{LabelPolicy, Labelling};
pub use target::request::{Move, Request, Want};
pub use target::usage::Usage;
