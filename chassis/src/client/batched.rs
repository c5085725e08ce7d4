//! Calls that a peer accepts one by one, or many in one request.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::http::StatusCode;
use futures_util::future::join_all;
use tokio::time::Instant;

use super::{AdaptiveLimit, Admission, Peer, PeerError};
use crate::batch::{BatchError, BatchItem, Batcher, Limits};
use crate::context::RequestContext;

/// A peer that does not know the batch call is called item by item for this time, then the batch call is tried again.
const SINGLE_CALLS_PERIOD: Duration = Duration::from_secs(60);

/// One kind of call, with its single and its batch form. Both must be safe to repeat.
pub trait BatchEndpoint: Send + Sync + 'static {
    /// The input of one call.
    type Item: Send + Sync + 'static;
    /// The result of one call.
    type Response: Send + 'static;

    /// The name in metrics.
    const NAME: &'static str;
    /// Maximum items of one batch call.
    const MAX_ITEMS: usize;
    /// Maximum bytes of one batch call, so that the peer accepts it.
    const MAX_BYTES: usize;

    /// Returns an upper bound of the bytes that the item adds to a batch call.
    fn item_bytes(item: &Self::Item) -> usize;

    /// Makes the call for one item.
    fn call_one(
        &self,
        item: &Self::Item,
        context: &RequestContext,
    ) -> impl Future<Output = Result<Self::Response, PeerError>> + Send;

    /// Makes one call for many items. Returns a result for each item, in the same order; `None` for an item that must be called
    /// alone.
    fn call_many(
        &self,
        items: &[(&Self::Item, &RequestContext)],
        context: &RequestContext,
    ) -> impl Future<Output = Result<Vec<Outcome<Self::Response>>, PeerError>> + Send;
}

/// The result of one item of a batch call; `None` if the item must be called alone.
pub type Outcome<R> = Option<Result<R, PeerError>>;

type Call<E> =
    BatchItem<(<E as BatchEndpoint>::Item, RequestContext), Result<<E as BatchEndpoint>::Response, PeerError>>;

/// Makes calls of one kind. A lone call goes out in its single form; calls that queue while others are in flight share one
/// batch call.
pub struct BatchedCalls<E: BatchEndpoint> {
    peer: Peer,
    limit: AdaptiveLimit,
    batcher: Batcher<(E::Item, RequestContext), Result<E::Response, PeerError>>,
}

impl<E: BatchEndpoint> BatchedCalls<E> {
    /// Creates the batched form of an endpoint. At most `PEER_MAX_IN_FLIGHT` items may wait.
    pub fn new(peer: &Peer, endpoint: E) -> Self {
        let max_queued = peer.0.settings.max_in_flight as usize;
        let item_bytes = |(item, _): &(E::Item, RequestContext)| E::item_bytes(item);
        let limits = Limits { max_items: E::MAX_ITEMS, max_bytes: E::MAX_BYTES, item_bytes, max_queued };
        let sender = Arc::new(Sender { endpoint, single_calls_until: Mutex::new(None) });
        let batcher = Batcher::new(E::NAME, limits, move |batch| {
            let sender = Arc::clone(&sender);
            async move { sender.send(batch).await }
        });
        Self { peer: peer.clone(), limit: AdaptiveLimit::new(peer), batcher }
    }

    /// Admits a call, for [`Self::submit_admitted`].
    ///
    /// # Errors
    /// If the peer cannot end one more call in time.
    pub async fn admit(&self, context: &RequestContext) -> Result<Admission, PeerError> {
        self.limit.admit(context).await
    }

    /// Makes the call as [`Self::submit`] does, within the adaptive limit.
    ///
    /// # Errors
    /// If there is no usable response; see [`PeerError`].
    pub async fn submit_admitted(
        &self,
        item: E::Item,
        context: &RequestContext,
        mut admission: Admission,
    ) -> Result<E::Response, PeerError> {
        admission.start();
        let limit = context.time_left();
        let result = self.submit(item, context).await;
        admission.finish(&result, limit);
        result
    }

    /// Makes the call, alone or in a batch, and returns its result within the deadline of `context`. Without the adaptive
    /// limit: for calls that relieve the peer or free its resources.
    ///
    /// # Errors
    /// If there is no usable response; see [`PeerError`].
    pub async fn submit(&self, item: E::Item, context: &RequestContext) -> Result<E::Response, PeerError> {
        let limit = context.time_left();
        self.peer.batch_result(self.batcher.submit((item, context.clone()), Some(limit)).await, limit)
    }
}

struct Sender<E> {
    endpoint: E,
    /// Until then the peer is called item by item.
    single_calls_until: Mutex<Option<Instant>>,
}

impl<E: BatchEndpoint> Sender<E> {
    async fn send(&self, batch: Vec<Call<E>>) {
        let uses_batch = batch.len() > 1 && !self.uses_single_calls();
        let (single, unknown) = if uses_batch { self.send_batch(batch).await } else { (batch, None) };
        let answered = join_all(single.into_iter().map(|call| async {
            let (item, context) = &call.item;
            let result = self.endpoint.call_one(item, context).await;
            let is_ok = result.is_ok();
            call.respond(result);
            is_ok
        }))
        .await;
        // If the peer answers no single call either, the rejection came from a gateway in front of it.
        if let Some(error) = unknown.filter(|_| answered.contains(&true)) {
            tracing::info!(%error, "the peer does not know the batch call; calling item by item");
            *self.single_calls_until.lock().unwrap_or_else(PoisonError::into_inner) =
                Some(Instant::now() + SINGLE_CALLS_PERIOD);
        }
    }

    /// Sends a batch call. Returns the items that must be called alone, and the error if the peer seems not to know the batch
    /// call.
    async fn send_batch(&self, batch: Vec<Call<E>>) -> (Vec<Call<E>>, Option<PeerError>) {
        let items: Vec<_> = batch.iter().map(|BatchItem { item: (item, context), .. }| (item, context)).collect();
        let context = RequestContext::merge(items.iter().map(|(_, context)| *context));
        let mut single = Vec::new();
        let mut unknown = None;
        match self.endpoint.call_many(&items, &context).await {
            Ok(outcomes) => {
                let outcomes = outcomes.into_iter().chain(std::iter::repeat_with(|| None));
                for (call, outcome) in batch.into_iter().zip(outcomes) {
                    match outcome {
                        Some(result) => call.respond(result),
                        None => single.push(call),
                    }
                }
            }
            // This batch was too large; the next one may not be.
            Err(PeerError::Unexpected { status: StatusCode::PAYLOAD_TOO_LARGE, .. }) => single = batch,
            Err(error) if lacks_batch_call(&error) => (single, unknown) = (batch, Some(error)),
            Err(error) => batch.into_iter().for_each(|call| call.respond(Err(error.clone()))),
        }
        (single, unknown)
    }

    fn uses_single_calls(&self) -> bool {
        self.single_calls_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_some_and(|until| Instant::now() < until)
    }
}

/// Returns whether an error is how another implementation of the contract answers a batch call that it does not know: it
/// rejects the call, or it answers as for another call.
fn lacks_batch_call(error: &PeerError) -> bool {
    match error {
        PeerError::TooLarge { .. } => true,
        PeerError::Unexpected { status, .. } => !status.is_server_error() || *status == StatusCode::NOT_IMPLEMENTED,
        PeerError::Unreachable { .. } | PeerError::NotSent { .. } | PeerError::TimedOut { .. } => false,
    }
}

impl Peer {
    /// Turns the result of a batcher into the result of a call that had this time limit.
    ///
    /// # Errors
    /// If there is no usable response; see [`PeerError`].
    pub fn batch_result<R>(
        &self,
        result: Result<Result<R, PeerError>, BatchError>,
        limit: Duration,
    ) -> Result<R, PeerError> {
        let peer = self.0.name;
        match result {
            Ok(result) => result,
            Err(BatchError::QueueFull) => Err(self.not_sent("too many calls are in flight")),
            Err(BatchError::Timeout) => Err(PeerError::TimedOut { peer, limit }),
            Err(BatchError::Panicked) => Err(PeerError::Unreachable { peer, cause: "the call panicked".to_owned() }),
        }
    }
}
