//! Generates shell completions and man pages from the definitions of the command line. Packages ship both.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, Command};
use clap_complete::{Shell, generate};
use clap_mangen::Man;

use super::{Exit, Failure};

/// The mode of a page.
const MODE: u32 = 0o644;

#[derive(Debug, Args)]
pub(super) struct Completions {
    /// The shell
    shell: Shell,
}

#[derive(Debug, Args)]
pub(super) struct ManPages {
    /// Directory for the pages
    #[arg(value_name = "DIRECTORY")]
    directory: PathBuf,
}

/// Prints the completions.
pub(super) fn completions(arguments: &Completions, mut command: Command) -> Result<Exit, Failure> {
    let mut text = Vec::new();
    let name = command.get_name().to_owned();
    generate(arguments.shell, &mut command, name, &mut text);
    super::print(&String::from_utf8_lossy(&text))?;
    Ok(Exit::Ready)
}

/// Writes one page for the program and one for each of its commands.
pub(super) fn man_pages(arguments: &ManPages, mut command: Command) -> Result<Exit, Failure> {
    command.build();
    let program = command.get_name().to_owned();
    page(&arguments.directory, program.clone(), command.clone())?;
    let commands = command.get_subcommands();
    for command in commands.filter(|it| it.get_name() != "help" && !it.is_hide_set()) {
        let name = format!("{program}-{}", command.get_name());
        page(&arguments.directory, name, command.clone())?;
    }
    Ok(Exit::Ready)
}

fn page(directory: &Path, name: String, command: Command) -> Result<(), Failure> {
    let path = directory.join(format!("{name}.1"));
    let write = || {
        let mut text = Vec::new();
        Man::new(command).title(name).render(&mut text)?;
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(MODE);
        options.open(&path)?.write_all(&text)
    };
    let written = write().with_context(|| format!("cannot write {}", path.display()));
    written.map_err(Failure::Other)
}
