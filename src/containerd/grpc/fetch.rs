//! Has containerd's transfer service fetch blobs from a registry, and answers its requests for
//! credentials.
//!
//! A transfer ends with the write of an image record. This one gives no name for the record: containerd
//! fetches all blobs under the lease, and then answers that it found no name. That answer is the success.
//! With a name, the transfer would replace the existing record and all its labels.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};

use containerd_client::services::v1 as api;
use containerd_client::to_any;
use containerd_client::types::transfer;
use futures::stream::StreamExt;
use prost_types::Any;
use tokio::sync::mpsc;
use tonic::{Code, Request, Status, Streaming};

use super::{Grpc, WORK_DEADLINE, failed};
use crate::containerd::{Logins, Result, Source};

/// containerd's message when everything is fetched and there is no name for the record.
const NO_NAME: &str = "no image name found";

/// The capacity of the queue of answers: containerd sends one request at a time.
const ANSWERS: usize = 1;

/// Numbers the streams of this process. The lease's id distinguishes processes.
static STREAMS: AtomicU64 = AtomicU64::new(0);

impl Grpc {
    pub(super) async fn transfer(&self, lease: &str, source: &Source) -> Result<()> {
        let reference = source.reference.as_str();
        let work = async {
            if source.logins.is_empty() {
                return self.transferred(lease, source, String::new()).await;
            }
            let n = STREAMS.fetch_add(1, Ordering::Relaxed);
            let id = format!("{lease}-credentials-{n}");
            let questions = Questions::open(self, &id).await;
            let questions = questions.map_err(failed("ask for credentials for", reference))?;
            tokio::select! {
                never = questions.answer(&source.logins) => match never {},
                done = self.transferred(lease, source, id.clone()) => done,
            }
        };
        // This deadline also covers the opening of the stream, which has none.
        let slow = || failed("fetch", reference)(Status::deadline_exceeded("too slow"));
        tokio::time::timeout(WORK_DEADLINE, work)
            .await
            .unwrap_or_else(|_| Err(slow()))
    }

    async fn transferred(&self, lease: &str, source: &Source, auth_stream: String) -> Result<()> {
        let registry = transfer::OciRegistry {
            reference: source.reference.clone(),
            resolver: Some(transfer::RegistryResolver {
                auth_stream,
                host_dir: source.hosts.to_string_lossy().into_owned(),
                ..Default::default()
            }),
        };
        let request = api::TransferRequest {
            source: Some(to_any(&registry)),
            destination: Some(to_any(&transfer::ImageStore::default())),
            options: None,
        };
        let request = self.under(lease, self.ask_within(WORK_DEADLINE, request))?;
        let done = api::transfer_client::TransferClient::new(self.channel.clone())
            .transfer(request)
            .await;
        match done {
            Err(status) if !is_done(&status) => Err(failed("fetch", &source.reference)(status)),
            _ => Ok(()),
        }
    }
}

fn is_done(status: &Status) -> bool {
    status.code() == Code::NotFound && status.message().contains(NO_NAME)
}

/// The stream on which containerd requests credentials.
struct Questions {
    questions: Streaming<Any>,
    answers: mpsc::Sender<Any>,
}

impl Questions {
    /// Opens the stream; returns when containerd has registered it under this id.
    async fn open(grpc: &Grpc, id: &str) -> std::result::Result<Self, Status> {
        let (answers, mut queue) = mpsc::channel(ANSWERS);
        let first = to_any(&api::StreamInit { id: id.to_owned() });
        let first = futures::stream::once(async { first });
        let rest = futures::stream::poll_fn(move |context| queue.poll_recv(context));
        let request = grpc.in_namespace(Request::new(first.chain(rest)));
        let reply = api::streaming_client::StreamingClient::new(grpc.channel.clone())
            .stream(request)
            .await?;
        let mut questions = reply.into_inner();
        questions.message().await?;
        Ok(Self { questions, answers })
    }

    /// Answers every request. Never returns: after a failure of the stream, the transfer itself reports the
    /// error.
    async fn answer(mut self, logins: &Logins) -> Infallible {
        while let Ok(Some(question)) = self.questions.message().await {
            let answer = to_any(&answer(&question, logins));
            if self.answers.send(answer).await.is_err() {
                break;
            }
        }
        std::future::pending().await
    }
}

/// Returns the credentials of the host that is asked for; an unknown host gets an answer without
/// credentials.
fn answer(question: &Any, logins: &Logins) -> transfer::AuthResponse {
    // containerd's type URL has only the type's name, without a prefix and a slash.
    let question = Any {
        type_url: format!("/{}", question.type_url.trim_start_matches('/')),
        value: question.value.clone(),
    };
    let asked: transfer::AuthRequest = question.to_msg().unwrap_or_default();
    let Some(login) = logins.get(&asked.host) else {
        return transfer::AuthResponse::default();
    };
    let kind = match login.username.is_empty() {
        true => transfer::AuthType::Refresh,
        false => transfer::AuthType::Credentials,
    };
    transfer::AuthResponse {
        auth_type: kind.into(),
        username: login.username.clone(),
        secret: login.secret.clone(),
        expire_at: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containerd::Login;

    #[test]
    fn each_host_gets_only_its_own_credentials() {
        let login = |username: &str, secret: &str| Login {
            username: username.to_owned(),
            secret: secret.to_owned(),
        };
        let logins = Logins::from([
            ("a.example".to_owned(), login("u", "p")),
            ("b.example:5000".to_owned(), login("", "t")),
        ]);
        use transfer::AuthType::{Credentials, None, Refresh};
        for (host, kind, username, secret) in [
            ("a.example", Credentials, "u", "p"),
            ("b.example:5000", Refresh, "", "t"),
            ("b.example", None, "", ""),
        ] {
            let question = to_any(&transfer::AuthRequest {
                host: host.to_owned(),
                ..Default::default()
            });
            let answer = answer(&question, &logins);
            let found = (answer.auth_type(), &*answer.username, &*answer.secret);
            assert_eq!(found, (kind, username, secret), "{host}");
        }
    }

    #[test]
    fn only_a_missing_name_counts_as_success() {
        let name = "no image name found: not found";
        for (status, done) in [
            (Status::not_found(name), true),
            (Status::not_found("manifest unknown: not found"), false),
            (Status::internal(name), false),
        ] {
            assert_eq!(is_done(&status), done, "{status:?}");
        }
    }
}
