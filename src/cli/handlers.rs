//! `handlers`: shows each runtime handler, its snapshotter, and the origin of that.

use clap::Args;
use serde::Serialize;

use crate::config::Config;
use crate::node::Node;
use crate::unpack::Role;

use super::table::table;
use super::{Exit, Failure, Output};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// The JSON output.
#[derive(Debug, Serialize)]
struct Report {
    handlers: Vec<Row>,
    /// `null` if no source names it.
    default_snapshotter: Option<String>,
    /// The problems with handlers; empty if there are none.
    problems: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Row {
    handler: String,
    snapshotter: String,
    origin: String,
}

pub(super) async fn handlers(config: Config, arguments: &Arguments) -> Result<Exit, Failure> {
    let node = Node::open(config, Role::Command)?;
    let handlers = node.resolve().await?;
    let row = |(handler, resolved): (&str, &crate::handlers::Resolved)| Row {
        handler: handler.to_owned(),
        snapshotter: resolved.snapshotter.clone(),
        origin: resolved.origin.to_string(),
    };
    let report = Report {
        handlers: handlers.iter().map(row).collect(),
        default_snapshotter: handlers.default_name().map(str::to_owned),
        problems: node.problems(&handlers).await?,
    };
    match arguments.output {
        Output::Json => super::print_json(&report)?,
        Output::Table => report.print()?,
    }
    Ok(if report.problems.is_empty() {
        Exit::Ready
    } else {
        Exit::NotReady
    })
}

impl Report {
    fn print(&self) -> Result<(), Failure> {
        let cells = |row: &Row| {
            [
                row.handler.clone(),
                row.snapshotter.clone(),
                row.origin.clone(),
            ]
        };
        let rows: Vec<_> = self.handlers.iter().map(cells).collect();
        super::print(&table(["HANDLER", "SNAPSHOTTER", "FROM"], &rows))?;
        for problem in &self.problems {
            super::complain(problem);
        }
        Ok(())
    }
}
