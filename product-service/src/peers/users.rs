//! user-service, as far as this service asks it.

use axum::http::{StatusCode, header};
use bytes::Bytes;
use chassis::client::{Answer, Peer, PeerError};
use chassis::config::PeerSettings;
use chassis::context::Context;
use chassis::page;
use chassis::problem::FieldError;
use serde::de::IgnoredAny;
use url::Url;

/// A client of user-service.
#[derive(Clone, Debug)]
pub struct Users(Peer);

/// A list of users, or what is wrong with the question.
#[derive(Debug)]
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
        Peer::new("user-service", base, settings).map(Self)
    }

    /// Who is called.
    pub fn peer(&self) -> &Peer {
        &self.0
    }

    /// `GET /users` with this query.
    ///
    /// # Errors
    /// If user-service does not answer, or not with a JSON array.
    pub async fn list(&self, query: Option<&str>, context: &Context) -> Result<Listed, PeerError> {
        let path = query.map_or_else(|| "/users".to_owned(), |query| format!("/users?{query}"));
        let answer = self.0.get(&path, context).await?;
        match answer.status {
            StatusCode::OK => {
                check_array(&answer.body).map_err(|error| self.0.unexpected(&answer, error))?;
                Ok(Listed::Rows(answer.body.clone(), next_query(&answer)))
            }
            StatusCode::BAD_REQUEST => match answer.problem() {
                Some(problem) => Ok(Listed::Invalid(problem.errors)),
                None => Err(self.0.unexpected(&answer, "a refusal without a reason")),
            },
            _ => Err(self.0.unexpected(&answer, "no list of users")),
        }
    }
}

/// Whether this is a JSON array, of whatever.
fn check_array(body: &[u8]) -> Result<(), String> {
    // serde_json looks at the UTF-8 only of strings that it keeps, so that comes first.
    let text = str::from_utf8(body).map_err(|error| error.to_string())?;
    serde_json::from_str::<Vec<IgnoredAny>>(text).map(drop).map_err(|error| error.to_string())
}

fn next_query(answer: &Answer) -> Option<String> {
    answer.headers.get(header::LINK).and_then(page::next_query).map(str::to_owned)
}
