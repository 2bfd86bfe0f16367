//! `config`: prints the default configuration, or checks a file.

use std::path::PathBuf;

use clap::Args;

use crate::config::Config;
use crate::hooks;
use crate::kubernetes;

use super::{Exit, Failure};

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(super) struct Arguments {
    /// Print the default configuration, with a comment for each key
    #[arg(long)]
    default: bool,
    /// Check this file
    #[arg(long, value_name = "FILE")]
    check: Option<PathBuf>,
}

pub(super) fn config(arguments: &Arguments) -> Result<Exit, Failure> {
    match &arguments.check {
        None => super::print(Config::default_toml())?,
        Some(path) => {
            let config = Config::load(Some(path))?;
            super::print(&format!("{}: no errors", path.display()))?;
            if let Some(remark) = hooks::too_short(&config) {
                super::complain(&remark);
            }
            if let Some(remark) = kubernetes::not_built(&config) {
                super::complain(&format!("{remark}: {}", kubernetes::BUILD));
            }
        }
    }
    Ok(Exit::Ready)
}
