//! `POST /sessions`: an access token for a username or an e-mail, and a password.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Extension, FromRequestParts, State};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use chassis::http::body::values::text;
use chassis::http::body::{FromJson, Members};
use chassis::http::client_address::ClientAddress;
use chassis::http::extract::Json;
use serde::Serialize;
use utoipa::ToSchema;

use crate::AppState;
use crate::error::Error;
use crate::guesses::Account;
use crate::issuer::{Issuer, TOKEN_SECONDS};
use crate::password::{Password, PasswordHash, Verdict};
use crate::user::{UserRecord, case_fold};

/// The body of `POST /sessions`: a username or an e-mail, not both, and the password.
#[derive(ToSchema)]
pub(crate) struct SignIn {
    /// The username of the account, in any case.
    #[schema(min_length = 1, max_length = 254, example = "ada")]
    username: Option<String>,
    /// Or the e-mail of the account, in any case.
    #[schema(min_length = 1, max_length = 254)]
    email: Option<String>,
    /// The password.
    #[schema(value_type = String, min_length = 1, max_length = 128, example = "correct horse battery staple")]
    password: Password,
}

impl FromJson for SignIn {
    fn from_json(body: &mut Members<'_>) -> Option<Self> {
        // A name that no account can have is answered like one that none has.
        let (username, email) = (body.optional("username", text(1..=254)), body.optional("email", text(1..=254)));
        let password = body.required("password", Password::parse_guess);
        let (username, email) = (username?, email?);
        match (&username, &email) {
            (None, None) => body.reject("username", "is required, or an e-mail in its place"),
            (Some(_), Some(_)) => body.reject("email", "must be absent beside a username"),
            _ => {}
        }
        Some(Self { username, email, password: password? })
    }
}

/// A session: what the client sends with its requests.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Session {
    /// For the header `Authorization: Bearer <accessToken>`.
    access_token: String,
    /// Always `Bearer`.
    #[schema(example = "Bearer")]
    token_type: &'static str,
    /// Seconds until the token expires.
    #[schema(example = 900)]
    expires_in: u64,
}

/// The issuer, for calls that are 404 while this service is not the issuer.
pub(crate) struct SignInIsOn(Arc<Issuer>);

impl FromRequestParts<AppState> for SignInIsOn {
    type Rejection = Error;

    async fn from_request_parts(_: &mut Parts, app: &AppState) -> Result<Self, Error> {
        app.issuer.clone().map(Self).ok_or(Error::NotTheIssuer)
    }
}

/// Signs in: returns an access token for a username or an e-mail, and the password.
///
/// The answer is 404 while this service is not the issuer of the tokens. After failures an account must wait longer each time,
/// also with the right password.
#[utoipa::path(post, path = "/sessions", operation_id = "createSession", tag = "sessions", request_body = SignIn,
    responses((status = OK, body = Session, headers(("cache-control" = String, description = "Always `no-store`"))),
        (status = UNAUTHORIZED, description = "`invalid-credentials`"), (status = NOT_FOUND, description = "Sign-in is off, or another provider is the issuer"),
        (status = TOO_MANY_REQUESTS, description = "`too-many-attempts`")))]
pub(crate) async fn create(
    State(app): State<AppState>,
    SignInIsOn(issuer): SignInIsOn,
    client: Option<Extension<ClientAddress>>,
    Json(SignIn { username, email, password }): Json<SignIn>,
) -> Result<Response, Error> {
    let found = match (&username, &email) {
        (Some(username), _) => app.store.by_username(username).await?,
        (None, Some(email)) => app.store.by_email(email).await?,
        (None, None) => None,
    };
    let account = match &found {
        Some(record) => Account::Known(record.user.id),
        None => issuer.guesses.unknown(&(username.as_deref().map(case_fold), email.as_deref().map(case_fold))),
    };
    let client = client.map(|Extension(ClientAddress(client))| client);
    let attempt = issuer.guesses.begin(account, client).await.map_err(too_many_attempts)?;
    let hash = found.as_ref().and_then(|record| record.password.clone());
    let verdict = match app.hasher.verify(password, hash).await {
        Ok(verdict) => verdict,
        Err(error) => {
            attempt.not_made();
            return Err(error.into());
        }
    };
    let (record, upgraded) = match (found, verdict) {
        (Some(record), Verdict::Right) => (record, None),
        (Some(record), Verdict::Upgraded(hash)) => (record, Some(hash)),
        _ => return Err(Error::InvalidCredentials),
    };
    attempt.succeeded();
    if let Some(hash) = upgraded {
        upgrade(&app, &record, hash).await;
    }
    let access_token = issuer.token(&record.user).map_err(Error::internal)?;
    let session = Session { access_token, token_type: "Bearer", expires_in: TOKEN_SECONDS };
    Ok((StatusCode::OK, [(header::CACHE_CONTROL, "no-store")], axum::Json(session)).into_response())
}

/// Stores a stronger hash of the same password. If that fails, the next sign-in tries again.
async fn upgrade(app: &AppState, record: &UserRecord, hash: PasswordHash) {
    let upgraded = UserRecord { password: Some(hash), version: record.version + 1, ..record.clone() };
    if let Err(error) = app.store.replace(record.version, upgraded).await {
        tracing::warn!(%error, "password hash not upgraded");
    }
}

fn too_many_attempts(wait: Duration) -> Error {
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    Error::TooManyAttempts { seconds: u32::try_from(seconds).unwrap_or(u32::MAX) }
}
