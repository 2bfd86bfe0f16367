//! What the many kills have done so far, in a file: after each round it is written, and the next run goes on with it.

use std::fmt::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};
use lab::Version;
use serde::{Deserialize, Serialize};

use super::{Counts, Victim};
use crate::random::{Random, seed, seed_of_clock};

/// The rounds on one node. Then the other version has its turn.
const ROUNDS: usize = 25;

#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Progress {
    seed: u64,
    /// The rounds so far, with those that failed.
    rounds: usize,
    /// By version, in the order of [`Version::ALL`].
    counts: [Counts; 2],
    faults: Vec<String>,
}

impl Progress {
    /// Reads the file. Without one, and with another seed in the environment, it begins.
    pub(super) fn load() -> Result<Self> {
        let (file, seed) = (file(), seed()?);
        let before = match std::fs::read(&file) {
            Ok(text) => {
                serde_json::from_slice(&text).with_context(|| file.display().to_string())?
            }
            Err(_) => Self::default(),
        };
        let progress = match seed {
            None if before.rounds > 0 => before,
            Some(seed) if seed == before.seed => before,
            seed => Self {
                seed: seed.map_or_else(seed_of_clock, Ok)?,
                ..Self::default()
            },
        };
        let (seed, kills) = (progress.seed, progress.kills());
        eprintln!("seed {seed}, {kills} kills so far: {}", file.display());
        Ok(progress)
    }

    fn save(&self) -> Result<()> {
        let (file, part) = (file(), file().with_extension("part"));
        std::fs::write(&part, serde_json::to_vec_pretty(self)?)?;
        Ok(std::fs::rename(part, file)?)
    }

    /// Returns the version that has its turn.
    pub(super) fn version(&self) -> Version {
        Version::ALL[self.turn()]
    }

    fn turn(&self) -> usize {
        self.rounds / ROUNDS % Version::ALL.len()
    }

    /// Returns the number of the next round, and its random numbers.
    pub(super) fn next_round(&self) -> (usize, Random) {
        (self.rounds, Random::of_round(self.seed, self.rounds))
    }

    /// Adds a round. Returns whether it was the last one on its node.
    pub(super) fn add(&mut self, round: &Counts) -> Result<bool> {
        let version = self.version();
        let turn = self.turn();
        self.counts[turn].add(round);
        self.rounds += 1;
        self.save()?;
        let (rounds, kills, made) = (self.rounds, self.kills(), round.made);
        let (rest, failed) = (round.longest_rest, round.failed.values().sum::<usize>());
        eprintln!(
            "round {rounds} on {version:?}: {kills} kills; {made} pods, {failed} tries failed, at rest after {rest:.1?}"
        );
        Ok(self.rounds.is_multiple_of(ROUNDS))
    }

    /// Adds a round that has failed.
    pub(super) fn add_fault(&mut self, fault: &anyhow::Error) -> Result<()> {
        let fault = format!("round {} on {:?}: {fault:#}", self.rounds, self.version());
        eprintln!("{fault}");
        self.faults.push(fault);
        self.rounds += 1;
        self.save()
    }

    pub(super) fn faults(&self) -> usize {
        self.faults.len()
    }

    /// Returns the number of kills.
    pub(super) fn kills(&self) -> usize {
        let kills = self.counts.iter().flat_map(|counts| counts.kills.values());
        kills.sum()
    }

    /// Returns the figures by version, and the faults.
    pub(super) fn table(&self) -> String {
        let mut table = format!("{:44}{:>8}{:>8}\n", "", "1.7", "2.1");
        let mut row = |name: &str, figure: &dyn Fn(&Counts) -> usize| {
            let [old, new] = &self.counts;
            writeln!(table, "{name:44}{:8}{:8}", figure(old), figure(new)).ok();
        };
        row("rounds", &|counts| counts.rounds);
        for victim in Victim::ALL {
            let of_victim = |counts: &Counts| counts.kills.get(&victim).copied();
            row(&format!("kills: {victim:?}"), &|c| {
                of_victim(c).unwrap_or(0)
            });
        }
        row("pods", &|counts| counts.made);
        for victim in Victim::ALL {
            let of_victim = |counts: &Counts| counts.failed.get(&victim).copied();
            let name = format!("failed tries after a kill: {victim:?}");
            row(&name, &|c| of_victim(c).unwrap_or(0));
        }
        row("leases that containerd left", &|it| it.leases_of_containerd);
        row("longest time to rest (s)", &|it| {
            it.longest_rest.as_secs() as usize
        });
        row("time (s)", &|counts| counts.took.as_secs() as usize);
        let faults = match self.faults.is_empty() {
            true => "none".to_owned(),
            false => self.faults.join("\n"),
        };
        format!("{table}seed {}; faults: {faults}", self.seed)
    }
}

/// Returns the path of the file, `target/kills.json`.
fn file() -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).with_file_name("kills.json")
}
