//! The client of user-service.

use std::collections::HashMap;

use axum::http::{HeaderValue, StatusCode, header};
use bytes::Bytes;
use chassis::batch::{BatchItem, Batcher, Limits};
use chassis::client::{AdaptiveLimit, Peer, PeerError, PeerResponse};
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
    limit: AdaptiveLimit,
    lists: Batcher<ListRequest, Result<UserList, PeerError>>,
}

/// A list that is requested.
struct ListRequest {
    query: Option<String>,
    /// The caller's. user-service decides what this caller may see.
    authorization: Option<HeaderValue>,
    context: RequestContext,
}

/// The response to a list request.
#[derive(Clone, Debug)]
pub enum UserList {
    /// A list of users.
    Found {
        /// The JSON array, byte for byte as user-service sent it.
        rows: Bytes,
        /// The query of the next page, if there is one.
        next: Option<String>,
    },
    /// user-service rejected these parameters of the query.
    InvalidQuery(Vec<FieldError>),
    /// user-service did not accept the token of the caller.
    Unauthenticated,
    /// user-service does not let the caller list users.
    Forbidden,
    /// The header of the call is too large for user-service: a client may encode its query in fewer bytes than a call does.
    TooLarge,
}

impl Users {
    /// Returns a client of the user-service at this address.
    ///
    /// # Errors
    /// If the HTTP client cannot be set up.
    pub fn new(base: Url, settings: &PeerSettings) -> Result<Self, PeerError> {
        let peer = Peer::new("user-service", base, settings)?;
        let max = settings.max_in_flight as usize;
        let limits = Limits { max_items: max, max_bytes: usize::MAX, item_bytes: |_| 0, max_queued: max };
        let caller = peer.clone();
        let lists = Batcher::new("lists", limits, move |batch| call_once_per_query_and_token(caller.clone(), batch));
        Ok(Self { limit: AdaptiveLimit::new(&peer), peer, lists })
    }

    /// Returns the peer, for the readiness checks.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Calls `GET /users` with this query, and with the header `Authorization` of the caller.
    ///
    /// Requests with the same query and token that arrive during a call share the next call. So a response is never older
    /// than the request that it is for, and no caller gets the response for another one.
    ///
    /// # Errors
    /// If user-service does not answer, or its answer is not a JSON array.
    pub async fn list(
        &self,
        query: Option<&str>,
        authorization: Option<HeaderValue>,
        context: &RequestContext,
    ) -> Result<UserList, PeerError> {
        let mut admission = self.limit.admit(context).await?;
        admission.start();
        let time_left = context.time_left();
        let request = ListRequest { query: query.map(str::to_owned), authorization, context: context.clone() };
        let answer = self.lists.submit(request, Some(time_left)).await;
        let result = self.peer.batch_result(answer, time_left);
        admission.finish(&result, time_left);
        result
    }
}

async fn call_once_per_query_and_token(peer: Peer, batch: Vec<BatchItem<ListRequest, Result<UserList, PeerError>>>) {
    let mut calls: HashMap<(Option<String>, Option<HeaderValue>), Vec<_>> = HashMap::new();
    for request in batch {
        let ListRequest { query, authorization, .. } = &request.item;
        calls.entry((query.clone(), authorization.clone())).or_default().push(request);
    }
    join_all(calls.into_iter().map(|((query, authorization), requests)| async {
        let context = RequestContext::merge(requests.iter().map(|request| &request.item.context));
        let list = call(&peer, query, authorization, &context).await;
        requests.into_iter().for_each(|request| request.respond(list.clone()));
    }))
    .await;
}

async fn call(
    peer: &Peer,
    query: Option<String>,
    authorization: Option<HeaderValue>,
    context: &RequestContext,
) -> Result<UserList, PeerError> {
    let path = query.map_or_else(|| "/users".to_owned(), |query| format!("/users?{query}"));
    let has_token = authorization.is_some();
    let response = peer.get_as(authorization, &path, context).await?;
    match response.status {
        StatusCode::OK => {
            check_array(&response.body).map_err(|error| peer.unexpected(&response, error))?;
            Ok(UserList::Found { rows: response.body.clone(), next: next_query(&response) })
        }
        StatusCode::BAD_REQUEST => match response.problem() {
            Some(problem) if !problem.errors.is_empty() => Ok(UserList::InvalidQuery(problem.errors)),
            _ => Err(peer.unexpected(&response, "a 400 that names no parameter")),
        },
        StatusCode::UNAUTHORIZED if has_token && response.is_json() => Ok(UserList::Unauthenticated),
        StatusCode::FORBIDDEN if has_token && response.is_json() => Ok(UserList::Forbidden),
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => Ok(UserList::TooLarge),
        _ => Err(peer.unexpected(&response, "not a list of users")),
    }
}

/// Checks that the body is a JSON array, of any items.
fn check_array(body: &[u8]) -> Result<(), String> {
    // serde_json checks the UTF-8 only of strings that it keeps, so the whole body is checked first.
    let text = str::from_utf8(body).map_err(|error| error.to_string())?;
    serde_json::from_str::<Vec<IgnoredAny>>(text).map(drop).map_err(|error| error.to_string())
}

fn next_query(response: &PeerResponse) -> Option<String> {
    response.headers.get(header::LINK).and_then(page::next_query).map(str::to_owned)
}
