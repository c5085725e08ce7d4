//! BatchEndpoint to a peer that can be asked one by one, and several in one call.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::http::StatusCode;
use futures_util::future::join_all;
use tokio::time::Instant;

use super::{Peer, PeerError};
use crate::batch::{BatchError, BatchItem, Batcher, Limits};
use crate::context::RequestContext;

/// How long a peer that does not know the call for several is asked one by one, before that is tried again.
const ONE_BY_ONE: Duration = Duration::from_secs(60);

/// A kind of question: what is asked, and by which calls. Both calls are safe to repeat.
pub trait BatchEndpoint: Send + Sync + 'static {
    /// What is asked.
    type Item: Send + Sync + 'static;
    /// What is answered.
    type Response: Send + 'static;

    /// What metrics call it.
    const NAME: &'static str;
    /// Most of one call.
    const MAX_ITEMS: usize;
    /// Most bytes of one call, so that the peer takes it.
    const MAX_BYTES: usize;

    /// How many bytes of the call for several are this one's, at most.
    fn item_bytes(ask: &Self::Item) -> usize;

    /// Asks one.
    fn call_one(
        &self,
        ask: &Self::Item,
        context: &RequestContext,
    ) -> impl Future<Output = Result<Self::Response, PeerError>> + Send;

    /// Asks several: a result for each, in the order asked; or `None` if that one has to be asked alone.
    fn call_many(
        &self,
        asks: &[(&Self::Item, &RequestContext)],
        context: &RequestContext,
    ) -> impl Future<Output = Result<Vec<Outcome<Self::Response>>, PeerError>> + Send;
}

/// What came of one question among several.
pub type Outcome<A> = Option<Result<A, PeerError>>;

type Call<Q> =
    BatchItem<(<Q as BatchEndpoint>::Item, RequestContext), Result<<Q as BatchEndpoint>::Response, PeerError>>;

/// Asks endpoint of one kind: alone if there is one, in one call what has gathered while others were on their way.
pub struct BatchedCalls<Q: BatchEndpoint> {
    peer: Peer,
    batcher: Batcher<(Q::Item, RequestContext), Result<Q::Response, PeerError>>,
}

impl<Q: BatchEndpoint> BatchedCalls<Q> {
    /// Over this peer, which can have as many endpoint in work as other calls.
    pub fn new(peer: &Peer, endpoint: Q) -> Self {
        let room = peer.0.settings.max_in_flight as usize;
        let size = |(ask, _): &(Q::Item, RequestContext)| Q::item_bytes(ask);
        let limits = Limits { max_items: Q::MAX_ITEMS, max_bytes: Q::MAX_BYTES, item_bytes: size, max_queued: room };
        let sender = Arc::new(Sender { endpoint, one_by_one: Mutex::new(None) });
        let batcher = Batcher::new(Q::NAME, limits, move |batch| {
            let sender = Arc::clone(&sender);
            async move { sender.send(batch).await }
        });
        Self { peer: peer.clone(), batcher }
    }

    /// The answer, within the time that `context` has left.
    ///
    /// # Errors
    /// If there is none that means anything.
    pub async fn submit(&self, ask: Q::Item, context: &RequestContext) -> Result<Q::Response, PeerError> {
        let patience = context.time_left();
        self.peer.batch_result(self.batcher.submit((ask, context.clone()), Some(patience)).await, patience)
    }
}

struct Sender<Q> {
    endpoint: Q,
    /// Until when.
    one_by_one: Mutex<Option<Instant>>,
}

impl<Q: BatchEndpoint> Sender<Q> {
    async fn send(&self, batch: Vec<Call<Q>>) {
        let alone = if batch.len() > 1 && !self.is_one_by_one() { self.send_several(batch).await } else { batch };
        join_all(alone.into_iter().map(|asked| async {
            let (ask, context) = &asked.item;
            let answer = self.endpoint.call_one(ask, context).await;
            asked.respond(answer);
        }))
        .await;
    }

    /// In one call; gives back those that have to be asked alone.
    async fn send_several(&self, batch: Vec<Call<Q>>) -> Vec<Call<Q>> {
        let asks: Vec<_> = batch.iter().map(|BatchItem { item: (ask, context), .. }| (ask, context)).collect();
        let context = RequestContext::merge(asks.iter().map(|(_, context)| *context));
        let mut alone = Vec::new();
        match self.endpoint.call_many(&asks, &context).await {
            Ok(outcomes) => {
                let outcomes = outcomes.into_iter().chain(std::iter::repeat_with(|| None));
                for (asked, outcome) in batch.into_iter().zip(outcomes) {
                    match outcome {
                        Some(answer) => asked.respond(answer),
                        None => alone.push(asked),
                    }
                }
            }
            // It speaks of this call, and not of the next.
            Err(PeerError::Unexpected { status: StatusCode::PAYLOAD_TOO_LARGE, .. }) => alone = batch,
            Err(error) if is_ignorance(&error) => {
                tracing::info!(%error, "asked one by one for a while");
                *self.one_by_one.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + ONE_BY_ONE);
                alone = batch;
            }
            Err(error) => batch.into_iter().for_each(|asked| asked.respond(Err(error.clone()))),
        }
        alone
    }

    fn is_one_by_one(&self) -> bool {
        self.one_by_one.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|until| Instant::now() < until)
    }
}

/// Whether this is how another implementation of the contract takes a call that it does not know: it refuses it, or
/// answers what it has for another one.
fn is_ignorance(error: &PeerError) -> bool {
    match error {
        PeerError::TooLarge { .. } => true,
        PeerError::Unexpected { status, .. } => !status.is_server_error() || *status == StatusCode::NOT_IMPLEMENTED,
        PeerError::Unreachable { .. } | PeerError::NotSent { .. } | PeerError::TimedOut { .. } => false,
    }
}

impl Peer {
    /// What a batcher has answered, to one who had so much time.
    ///
    /// # Errors
    /// If there is no answer that means anything.
    pub fn batch_result<R>(
        &self,
        answer: Result<Result<R, PeerError>, BatchError>,
        limit: Duration,
    ) -> Result<R, PeerError> {
        let peer = self.0.name;
        match answer {
            Ok(answer) => answer,
            Err(BatchError::QueueFull) => Err(self.not_sent("too many calls wait for its answers")),
            Err(BatchError::Timeout) => Err(PeerError::TimedOut { peer, limit }),
            Err(BatchError::Panicked) => {
                Err(PeerError::Unreachable { peer, cause: "the call has panicked".to_owned() })
            }
        }
    }
}
