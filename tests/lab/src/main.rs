//! The lab without a test: `lab fetch` and `lab clean` for the Makefile, `lab run` for manual use.

use anyhow::{Result, bail};
use lab::{Lab, Packages, Version};

const USAGE: &str = "usage: lab fetch          fetches the packages that the tests run
       lab run 1.7|2.1    starts a containerd, shows how to speak to it, and takes it down on Ctrl-C
       lab clean          clears what killed tests have left";

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["fetch"] => Packages::fetch().map(drop),
        ["clean"] => lab::sweep(),
        ["run", "1.7"] => run_until_interrupted(Version::V1_7).await,
        ["run", "2.1"] => run_until_interrupted(Version::V2_1).await,
        _ => bail!(USAGE),
    }
}

async fn run_until_interrupted(version: Version) -> Result<()> {
    tokio::select! {
        failed = run(version) => failed,
        // The lab has been dropped here, also one that was still starting.
        ended = lab::interrupted() => Ok(ended?),
    }
}

async fn run(version: Version) -> Result<()> {
    let lab = Lab::start(version).await?;
    println!("socket     {}", lab.socket().display());
    println!("NRI        {}", lab.nri_socket().display());
    println!("config     {}", lab.config().display());
    println!("log        {}", lab.log().path().display());
    println!("ctr        {} --namespace k8s.io", lab.ctr_command());
    std::future::pending().await
}
