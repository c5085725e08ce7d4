//! user-service, as far as this service asks it.

use std::collections::HashMap;

use axum::http::{StatusCode, header};
use bytes::Bytes;
use chassis::batch::{BatchItem, Batcher, Limits};
use chassis::client::{Peer, PeerError, PeerResponse};
use chassis::config::PeerSettings;
use chassis::context::RequestContext;
use chassis::http::page;
use chassis::problem::FieldError;
use futures_util::future::join_all;
use serde::de::IgnoredAny;
use url::Url;

/// A client of user-service.
#[derive(Clone)]
pub struct Users {
    peer: Peer,
    lists: Batcher<Wanted, Result<Listed, PeerError>>,
}

/// The query of a list, and for whom it is.
type Wanted = (Option<String>, RequestContext);

/// A list of users, or what is wrong with the question.
#[derive(Clone, Debug)]
pub enum Listed {
    /// The rows as they came, and the query of the next page if there is one.
    Rows(Bytes, Option<String>),
    /// user-service finds these parameters invalid.
    Invalid(Vec<FieldError>),
}

impl Users {
    /// The user-service at this address.
    ///
    /// # Errors
    /// If the HTTP client cannot be set up.
    pub fn at(base: Url, settings: &PeerSettings) -> Result<Self, PeerError> {
        let peer = Peer::new("user-service", base, settings)?;
        let room = settings.max_in_flight as usize;
        let limits = Limits { max_items: room, max_bytes: usize::MAX, item_bytes: |_| 0, max_queued: room };
        let asking = peer.clone();
        let lists = Batcher::new("lists", limits, move |batch| ask_each_once(asking.clone(), batch));
        Ok(Self { peer, lists })
    }

    /// Who is called.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// `GET /users` with this query. Those who ask for the same while a call is on its way share the next one: what they are
    /// answered is never older than their question.
    ///
    /// # Errors
    /// If user-service does not answer, or not with a JSON array.
    pub async fn list(&self, query: Option<&str>, context: &RequestContext) -> Result<Listed, PeerError> {
        let patience = context.time_left();
        let answer = self.lists.submit((query.map(str::to_owned), context.clone()), Some(patience)).await;
        self.peer.batch_result(answer, patience)
    }
}

async fn ask_each_once(peer: Peer, batch: Vec<BatchItem<Wanted, Result<Listed, PeerError>>>) {
    let mut same: HashMap<Option<String>, Vec<_>> = HashMap::new();
    for asked in batch {
        same.entry(asked.item.0.clone()).or_default().push(asked);
    }
    join_all(same.into_iter().map(|(query, asked)| async {
        let context = RequestContext::merge(asked.iter().map(|asked| &asked.item.1));
        let listed = list(&peer, query, &context).await;
        asked.into_iter().for_each(|asked| asked.respond(listed.clone()));
    }))
    .await;
}

async fn list(peer: &Peer, query: Option<String>, context: &RequestContext) -> Result<Listed, PeerError> {
    let path = query.map_or_else(|| "/users".to_owned(), |query| format!("/users?{query}"));
    let answer = peer.get(&path, context).await?;
    match answer.status {
        StatusCode::OK => {
            check_array(&answer.body).map_err(|error| peer.unexpected(&answer, error))?;
            Ok(Listed::Rows(answer.body.clone(), next_query(&answer)))
        }
        StatusCode::BAD_REQUEST => match answer.problem() {
            Some(problem) => Ok(Listed::Invalid(problem.errors)),
            None => Err(peer.unexpected(&answer, "a refusal without a reason")),
        },
        _ => Err(peer.unexpected(&answer, "no list of users")),
    }
}

/// Whether this is a JSON array, of whatever.
fn check_array(body: &[u8]) -> Result<(), String> {
    // serde_json looks at the UTF-8 only of strings that it keeps, so that comes first.
    let text = str::from_utf8(body).map_err(|error| error.to_string())?;
    serde_json::from_str::<Vec<IgnoredAny>>(text).map(drop).map_err(|error| error.to_string())
}

fn next_query(answer: &PeerResponse) -> Option<String> {
    answer.headers.get(header::LINK).and_then(page::next_query).map(str::to_owned)
}
