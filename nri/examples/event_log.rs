//! Prints a runtime's events. Call it with the path of the runtime's socket, or put it into the runtime's
//! plugin directory as `10-event-log` (NRI then discards its output).

use std::process::ExitCode;
use std::sync::Arc;

use nri::{Container, HandlerResult, Plugin, Pod, Session, connect};

struct EventLog;

#[async_trait::async_trait]
impl Plugin for EventLog {
    async fn synchronize(&self, pods: Vec<Pod>, containers: Vec<Container>) -> HandlerResult {
        println!(
            "synchronize: {} pods, {} containers",
            pods.len(),
            containers.len()
        );
        Ok(())
    }

    async fn run_pod_sandbox(&self, pod: Pod) -> HandlerResult {
        println!(
            "run_pod_sandbox: {}/{} ({})",
            pod.namespace, pod.name, pod.runtime_handler
        );
        Ok(())
    }

    async fn create_container(&self, pod: Pod, container: Container) -> HandlerResult {
        println!(
            "create_container: {} of {}/{}",
            container.name, pod.namespace, pod.name
        );
        Ok(())
    }

    async fn remove_container(&self, _: Pod, container: Container) -> HandlerResult {
        println!("remove_container: {}", container.id);
        Ok(())
    }
}

async fn run() -> Result<(), Box<dyn std::error::Error>> {
    let (identity, stream) = match connect::launched()? {
        Some(launched) => launched,
        None => {
            let path = std::env::args_os().nth(1);
            let path = path.unwrap_or(connect::DEFAULT_SOCKET.into());
            let stream = connect::socket(path.as_ref()).await?;
            ("10-event-log".parse()?, stream)
        }
    };
    println!("registering as {identity}");
    let mut session = Session::start(stream, identity, Arc::new(EventLog)).await?;
    println!("{}", session.ended().await);
    Ok(())
}

#[tokio::main]
async fn main() -> ExitCode {
    if let Err(error) = run().await {
        eprintln!("event_log: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
