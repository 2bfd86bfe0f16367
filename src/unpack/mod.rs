//! `ensure(image, snapshotter)`: look at the chain, decide, do the least that makes it `ready`.
//!
//! [`State`] and plan are pure; the flight acts on the plan; the [`Engine`] runs one flight for each
//! (snapshotter, chain), detached from whoever asked. It does not know NRI.

mod abilities;
mod action;
mod claims;
mod content;
mod context;
mod decryption;
mod engine;
mod error;
mod find;
mod flight;
mod flights;
mod gate;
mod guest;
mod hold;
mod images;
mod in_use;
mod label_policy;
mod labelling;
mod layer;
mod layer_content;
mod lease;
mod limits;
mod listing;
mod lock;
mod missing;
mod mounts;
mod naming;
mod pace;
mod parallel;
mod plan;
mod profile;
mod progress;
mod pull;
mod rebuild;
mod removed;
mod replace;
mod request;
mod resolve;
mod round;
mod standing;
mod state;
mod stuck;
mod swap;
mod target;
#[cfg(test)]
mod tests;
mod volume;

pub use action::Action;
pub use engine::{Engine, Look, SANDBOX};
pub use error::Error;
pub use gate::{Parallel, Urgency};
pub use guest::is_on_host;
pub use label_policy::{LabelPolicy, Labelling};
pub use lease::Role;
pub use listing::Listing;
pub use missing::{Means, Missing};
pub use plan::{Planned, StepKind};
#[cfg(test)]
pub(crate) use profile::tests::proxied;
pub use profile::{Profile, Repair};
pub use progress::{Done, Outcome, Progress, Ticket};
pub use pull::Registries;
pub(crate) use rebuild::attributes_are_seen;
pub use request::{Move, Request, Want};
pub use standing::Standing;
pub use state::{Rules, Sight, State};
pub use swap::{LEAST_WAIT, Swapped, Until};
