//! The list of all image records. Requests that arrive together share one call and one copy, and each request uses one
//! list for all of its questions.
//!
//! No answer is older than its request: a list that was begun before the request came is not used for it.

use std::sync::Arc;

use tokio::sync::OnceCell;

use crate::containerd::{Containerd, Image, Result};
use crate::question::Question;

/// All image records.
type Records = Arc<[Image]>;

/// Reads the list for all requests of one engine.
#[derive(Debug, Default)]
pub(crate) struct StoreImages(Question<Result<Records>>);

impl StoreImages {
    /// Returns a list that was begun after this call.
    pub(crate) async fn read(&self, containerd: &dyn Containerd) -> Result<Records> {
        let list = async { containerd.images().await.map(Records::from) };
        self.0.ask(list).await
    }
}

/// The list for one request, which is read when it is needed first.
#[derive(Debug, Default)]
pub(crate) struct RequestImages(OnceCell<Records>);

impl RequestImages {
    /// Returns the list if the request has read it.
    pub(crate) fn read(&self) -> Option<&[Image]> {
        self.0.get().map(|records| &**records)
    }

    pub(crate) async fn get(
        &self,
        store: &StoreImages,
        containerd: &dyn Containerd,
    ) -> Result<&[Image]> {
        let records = self.0.get_or_try_init(|| store.read(containerd)).await?;
        Ok(records)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::containerd::fake::Fake;

    const LIST: &str = "list images";

    fn lists(fake: &Fake) -> usize {
        fake.subjects(LIST).len()
    }

    #[tokio::test(start_paused = true)]
    async fn questions_that_come_together_share_a_list() {
        let (fake, store) = (Fake::default(), StoreImages::default());
        fake.image("r.example/a:1", 1);
        fake.slow(LIST, Duration::from_millis(10));
        let all = (0..10).map(|_| store.read(&fake));
        let all = futures::future::join_all(all).await;
        assert!(all.iter().all(|read| read.as_ref().unwrap().len() == 1));
        // The first question is asked alone; all others wait, and come before the second list.
        assert_eq!(lists(&fake), 2);
        assert!(!store.0.keeps_an_answer().await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_question_is_not_answered_by_a_list_that_was_begun_before_it() {
        let (fake, store) = (Fake::default(), StoreImages::default());
        fake.slow(LIST, Duration::from_millis(10));
        let late = async {
            tokio::time::sleep(Duration::from_millis(11)).await;
            fake.image("r.example/a:1", 1);
            store.read(&fake).await.unwrap().len()
        };
        let early = async {
            store.read(&fake).await.unwrap();
            store.read(&fake).await.unwrap().len()
        };
        let (early, late) = futures::join!(early, late);
        assert_eq!((early, late), (1, 1));
    }

    #[tokio::test]
    async fn an_error_is_shared_but_not_kept() {
        let (fake, store) = (Fake::default(), StoreImages::default());
        fake.go_down();
        assert!(store.read(&fake).await.is_err());
        fake.heal();
        assert!(store.read(&fake).await.unwrap().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_question_does_not_hold_up_the_others() {
        let (fake, store) = (Fake::default(), StoreImages::default());
        fake.slow(LIST, Duration::from_secs(5));
        let dropped = tokio::time::timeout(Duration::from_secs(1), store.read(&fake));
        let (dropped, read) = futures::join!(dropped, store.read(&fake));
        assert!(dropped.is_err());
        assert!(read.unwrap().is_empty());
        assert!(!store.0.keeps_an_answer().await);
    }

    #[tokio::test]
    async fn a_request_reads_one_list() {
        let (fake, store) = (Fake::default(), StoreImages::default());
        let request = RequestImages::default();
        for _ in 0..3 {
            assert!(request.get(&store, &fake).await.unwrap().is_empty());
        }
        assert_eq!(lists(&fake), 1);
    }
}
