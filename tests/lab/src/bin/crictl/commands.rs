//! The commands: each makes one or more calls of CRI.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use k8s_cri::v1;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use serde_json::{Value, json};
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

use crate::files;
use crate::flags::{Flag, Flags};

/// The default timeout of crictl.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(2);

const QUIET: Flag = Flag::switch(&["quiet", "q"]);

/// The runtime and image services.
pub(crate) struct Client {
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    timeout: Duration,
}

impl Client {
    /// Connects to the endpoint of the flags, without a default: a test must not use the machine's own runtime.
    pub(crate) async fn connect(global: &Flags) -> Result<Self> {
        let timeout = global.value("timeout").map(duration).transpose()?;
        let endpoint = global
            .value("runtime-endpoint")
            .context("--runtime-endpoint is not set")?;
        let images = global.value("image-endpoint").unwrap_or(endpoint);
        Ok(Self {
            runtime: RuntimeServiceClient::new(channel(endpoint).await?),
            images: ImageServiceClient::new(channel(images).await?),
            timeout: timeout.unwrap_or(DEFAULT_TIMEOUT),
        })
    }

    pub(crate) async fn run(mut self, command: &str, arguments: Vec<String>) -> Result<()> {
        let known: &[Flag] = match command {
            "info" | "images" | "inspecti" | "inspect" => &[QUIET],
            "runp" => &[Flag::value(&["runtime", "r"])],
            "rmp" => &[Flag::switch(&["force", "f"])],
            "pods" => &[
                QUIET,
                Flag::value(&["id"]),
                Flag::value(&["label"]),
                Flag::value(&["state", "s"]),
            ],
            _ => &[],
        };
        let (flags, arguments) = Flags::parse(known, arguments)?;
        match (command, &arguments[..]) {
            ("info", []) => self.info(&flags).await,
            ("images", []) => self.list_images(&flags).await,
            ("inspecti", [_, ..]) => self.inspect_images(&flags, &arguments).await,
            ("pull", [image]) => self.pull(image).await,
            ("rmi", [_, ..]) => self.remove_images(&arguments).await,
            ("pods", []) => self.pods(&flags).await,
            ("runp", [pod]) => self.run_pod(&flags, pod).await,
            ("stopp", [_, ..]) => self.stop_pods(&arguments).await,
            ("rmp", [_, ..]) => self.remove_pods(&flags, &arguments).await,
            ("create", [pod, container, config]) => self.create(pod, container, config).await,
            ("start", [_, ..]) => self.start(&arguments).await,
            ("inspect", [_, ..]) => self.inspect(&flags, &arguments).await,
            (
                "info" | "images" | "pull" | "rmi" | "pods" | "runp" | "stopp" | "rmp" | "create",
                _,
            ) => help(command),
            _ => bail!("the stand-in does not know {command} with these arguments"),
        }
    }

    async fn info(&mut self, flags: &Flags) -> Result<()> {
        let verbose = !flags.is_set("quiet");
        let call = self.runtime.status(v1::StatusRequest { verbose });
        let found = in_time(self.timeout, call).await;
        let found = found.context("getting status of runtime")?;
        let conditions = found.status.unwrap_or_default().conditions.into_iter();
        let conditions = conditions.map(|c| {
            json!({"type": c.r#type, "status": c.status, "reason": c.reason, "message": c.message})
        });
        let conditions: Vec<_> = conditions.collect();
        print_status(json!({ "conditions": conditions }), found.info)
    }

    async fn list_images(&mut self, flags: &Flags) -> Result<()> {
        only_quiet(flags)?;
        let call = self.images.list_images(v1::ListImagesRequest::default());
        let found = in_time(self.timeout, call).await;
        for image in found.context("listing images")?.images {
            println!("{}", image.id);
        }
        Ok(())
    }

    async fn image(&mut self, name: &str) -> Result<v1::Image> {
        let request = v1::ImageStatusRequest {
            image: Some(spec(name)),
            verbose: false,
        };
        let call = self.images.image_status(request);
        let found = in_time(self.timeout, call).await;
        let found = found.with_context(|| format!("image status for {name:?} request"))?;
        let found = found.image;
        found.with_context(|| format!("no such image {name:?} present"))
    }

    async fn inspect_images(&mut self, flags: &Flags, names: &[String]) -> Result<()> {
        only_quiet(flags)?;
        for name in names {
            let image = self.image(name).await?;
            let status = json!({
                "id": image.id,
                "pinned": image.pinned,
                "repoDigests": image.repo_digests,
                "repoTags": image.repo_tags,
                "size": image.size.to_string(),
                "username": image.username,
            });
            print_status(status, Default::default())?;
        }
        Ok(())
    }

    /// Pulls an image. The only call without a timeout, unless `--pull-timeout` sets one.
    async fn pull(&mut self, image: &str) -> Result<()> {
        let request = v1::PullImageRequest {
            image: Some(spec(image)),
            ..Default::default()
        };
        let pulled = self.images.pull_image(request).await.map_err(rpc);
        let id = pulled.context("pulling image")?.into_inner().image_ref;
        println!("Image is up to date for {id}");
        Ok(())
    }

    async fn remove_images(&mut self, names: &[String]) -> Result<()> {
        for name in names {
            let image = self.image(name).await?;
            let request = v1::RemoveImageRequest {
                image: Some(spec(name)),
            };
            let call = self.images.remove_image(request);
            let removed = in_time(self.timeout, call).await;
            removed.with_context(|| format!("error of removing image {name:?}"))?;
            for tag in image.repo_tags {
                println!("Deleted: {tag}");
            }
        }
        Ok(())
    }

    async fn pods(&mut self, flags: &Flags) -> Result<()> {
        only_quiet(flags)?;
        let label = |label: &str| -> Result<(String, String)> {
            let (key, value) = label
                .split_once('=')
                .context("incorrectly formatted label")?;
            Ok((key.to_owned(), value.to_owned()))
        };
        let labels = flags.value("label").map(label).transpose()?;
        let state = match flags.value("state") {
            None => None,
            Some("ready") => Some(v1::PodSandboxState::SandboxReady),
            Some("notready") => Some(v1::PodSandboxState::SandboxNotready),
            Some(_) => bail!("--state should be ready or notready"),
        };
        let filter = v1::PodSandboxFilter {
            id: flags.value("id").unwrap_or_default().to_owned(),
            state: state.map(|state| v1::PodSandboxStateValue {
                state: state.into(),
            }),
            label_selector: labels.into_iter().collect(),
        };
        let request = v1::ListPodSandboxRequest {
            filter: Some(filter),
        };
        let call = self.runtime.list_pod_sandbox(request);
        let found = in_time(self.timeout, call).await;
        for pod in found.context("listing pod sandboxes")?.items {
            println!("{}", pod.id);
        }
        Ok(())
    }

    async fn run_pod(&mut self, flags: &Flags, pod: &str) -> Result<()> {
        let request = v1::RunPodSandboxRequest {
            config: Some(files::pod(pod)?),
            runtime_handler: flags.value("runtime").unwrap_or_default().to_owned(),
        };
        let call = self.runtime.run_pod_sandbox(request);
        let ran = in_time(self.timeout * 2, call).await;
        println!("{}", ran.context("run pod sandbox")?.pod_sandbox_id);
        Ok(())
    }

    async fn stop_pods(&mut self, ids: &[String]) -> Result<()> {
        for id in ids {
            let request = v1::StopPodSandboxRequest {
                pod_sandbox_id: id.clone(),
            };
            let call = self.runtime.stop_pod_sandbox(request);
            let stopped = in_time(self.timeout, call).await;
            stopped.with_context(|| format!("stopping the pod sandbox {id:?}"))?;
            println!("Stopped sandbox {id}");
        }
        Ok(())
    }

    async fn remove_pods(&mut self, flags: &Flags, ids: &[String]) -> Result<()> {
        for id in ids {
            let request = v1::PodSandboxStatusRequest {
                pod_sandbox_id: id.clone(),
                verbose: false,
            };
            let call = self.runtime.pod_sandbox_status(request);
            let found = in_time(self.timeout, call).await;
            let found = found.with_context(|| format!("getting sandbox status of pod {id:?}"))?;
            let state = found.status.unwrap_or_default().state();
            if state == v1::PodSandboxState::SandboxReady {
                ensure!(
                    flags.is_set("force"),
                    "pod sandbox {id:?} is running, please stop it first"
                );
                self.stop_pods(std::slice::from_ref(id)).await?;
            }
            let request = v1::RemovePodSandboxRequest {
                pod_sandbox_id: id.clone(),
            };
            let call = self.runtime.remove_pod_sandbox(request);
            let removed = in_time(self.timeout, call).await;
            removed.with_context(|| format!("removing the pod sandbox {id:?}"))?;
            println!("Removed sandbox {id}");
        }
        Ok(())
    }

    async fn create(&mut self, pod: &str, container: &str, config: &str) -> Result<()> {
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: pod.to_owned(),
            config: Some(files::container(container)?),
            sandbox_config: Some(files::pod(config)?),
        };
        let call = self.runtime.create_container(request);
        let created = in_time(self.timeout, call).await;
        println!("{}", created.context("creating container")?.container_id);
        Ok(())
    }

    async fn start(&mut self, ids: &[String]) -> Result<()> {
        for id in ids {
            let request = v1::StartContainerRequest {
                container_id: id.clone(),
            };
            let call = self.runtime.start_container(request);
            let started = in_time(self.timeout, call).await;
            started.with_context(|| format!("starting the container {id:?}"))?;
            println!("{id}");
        }
        Ok(())
    }

    async fn inspect(&mut self, flags: &Flags, ids: &[String]) -> Result<()> {
        only_quiet(flags)?;
        for id in ids {
            let request = v1::ContainerStatusRequest {
                container_id: id.clone(),
                verbose: false,
            };
            let call = self.runtime.container_status(request);
            let found = in_time(self.timeout, call).await;
            let found = found.context("get the status of containers")?;
            let found = found.status.unwrap_or_default();
            let status = json!({
                "exitCode": found.exit_code,
                "id": found.id,
                "image": {"image": found.image.as_ref().map(|image| &image.image)},
                "imageRef": found.image_ref,
                "message": found.message,
                "reason": found.reason,
                "state": found.state().as_str_name(),
            });
            print_status(status, Default::default())?;
        }
        Ok(())
    }
}

/// Prints the help, as crictl does with exit code 0 for a wrong number of arguments.
fn help(command: &str) -> Result<()> {
    println!("NAME:\n   crictl {command}");
    Ok(())
}

/// Requires `--quiet`: tables and verbose information differ between versions.
fn only_quiet(flags: &Flags) -> Result<()> {
    ensure!(flags.is_set("quiet"), "the stand-in takes it only with -q");
    Ok(())
}

fn print_status(status: Value, info: std::collections::HashMap<String, String>) -> Result<()> {
    let mut all = serde_json::Map::from_iter([("status".to_owned(), status)]);
    for (key, text) in info {
        let value = serde_json::from_str(&text).unwrap_or(Value::String(text));
        all.insert(key, value);
    }
    println!("{}", serde_json::to_string_pretty(&all)?);
    Ok(())
}

fn spec(name: &str) -> v1::ImageSpec {
    v1::ImageSpec {
        image: name.to_owned(),
        ..Default::default()
    }
}

async fn channel(endpoint: &str) -> Result<Channel> {
    let socket = endpoint.strip_prefix("unix://").unwrap_or(endpoint);
    let connected = containerd_client::connect(socket).await;
    connected.map_err(|error| {
        anyhow!(
            "validate service connection: CRI v1 runtime API is not implemented for endpoint {endpoint:?}: \
             rpc error: code = Unavailable desc = connection error: desc = {:?}",
            format!("{:#}", anyhow::Error::from(error))
        )
    })
}

async fn in_time<T>(
    timeout: Duration,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T> {
    let done = tokio::time::timeout(timeout, call).await;
    let done = done.unwrap_or_else(|_| Err(Status::deadline_exceeded("context deadline exceeded")));
    done.map(Response::into_inner).map_err(rpc)
}

/// Returns an error in the format of Go's gRPC.
fn rpc(status: Status) -> anyhow::Error {
    let code = match status.code() {
        Code::Cancelled => "Canceled".to_owned(),
        code => format!("{code:?}"),
    };
    anyhow!("rpc error: code = {code} desc = {}", status.message())
}

/// Parses Go's durations in whole seconds.
fn duration(text: &str) -> Result<Duration> {
    let seconds = text.strip_suffix('s').and_then(|n| n.parse().ok());
    let seconds = seconds.with_context(|| {
        format!("invalid value {text:?} for flag -timeout: the stand-in takes seconds, as in 2s")
    })?;
    Ok(Duration::from_secs(seconds))
}
