//! Has containerd fetch blobs from a registry, by its transfer service, and answers its question for
//! credentials.
//!
//! A transfer ends in an image record. The one that is given here has no name: containerd fetches
//! everything under our lease, finds nothing to write, and says so. That answer is the success. With
//! a name, the record that stands there already would be replaced, with all its labels.

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

/// What the transfer says when all is fetched and there is no name to give to it.
const NO_NAME: &str = "no image name found";

/// Answers that wait to be sent: containerd asks for one at a time.
const ANSWERS: usize = 1;

/// Tells the streams of this process apart; the lease's name tells processes apart.
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
        // Opening the stream has no deadline of its own.
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

/// The stream on which containerd asks.
struct Questions {
    questions: Streaming<Any>,
    answers: mpsc::Sender<Any>,
}

impl Questions {
    /// Returns when containerd knows the stream by this id.
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

    /// Answers every question. Never ends: where no more can come, the transfer says why.
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

/// A host that is not known gets no credentials, which is an answer as well.
fn answer(question: &Any, logins: &Logins) -> transfer::AuthResponse {
    // containerd leaves out what stands before the slash, and the slash.
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
    fn each_host_gets_its_own_credentials_and_no_other() {
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
    fn only_the_lack_of_a_name_is_success() {
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
