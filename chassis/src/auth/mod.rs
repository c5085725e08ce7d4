//! Sign-in: who makes a request, and whether the caller may make it.
//!
//! It is off by default. With `AUTH_ISSUER` each service verifies access tokens itself (RFC 6750, 7519, 8725 and 9068):
//!
//! 1. The pipeline asks the [`Authenticator`] who the [`Caller`] is. It verifies the [`token`] with a key of the issuer, or with
//!    the key of another service.
//! 2. It looks up the call in the table of the service, a list of [`Rule`]s. A call without a rule is allowed to no caller.
//! 3. Where a rule depends on an entity, the handler asks the [`Caller`].
//!
//! [`issuer`] fetches the keys of the issuer. [`signing`] signs tokens: those of users in the service that issues them, and those
//! of a service that calls others.

mod access;
mod crypto;
mod fetch;
mod issuer;
mod keys;
mod signing;
mod token;
mod verified;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};

pub use self::access::{Access, Caller, Grant, Reach, Rule};
pub(crate) use self::access::{check, grants};
use self::issuer::{Issuer, KeysUnavailable};
pub use self::keys::KeySet;
pub use self::signing::{ServiceTokens, SigningKey};
use self::token::{Expected, Rejection, Unverified};
use self::verified::Verified;
use crate::config::AuthSettings;
use crate::problem::{FieldError, Kind, Problem};

/// The call needs a token, and there is none, or it is not valid.
pub static UNAUTHENTICATED: Kind = Kind::new(StatusCode::UNAUTHORIZED, "unauthenticated", "Not signed in");
/// The caller is known, but may not make this call.
pub static INSUFFICIENT_SCOPE: Kind = Kind::new(StatusCode::FORBIDDEN, "insufficient-scope", "Not allowed");
/// The keys of the issuer could not be fetched, so the token cannot be verified.
pub static KEYS_UNAVAILABLE: Kind =
    Kind::new(StatusCode::SERVICE_UNAVAILABLE, "keys-unavailable", "Keys of the issuer unavailable");

const NOT_VALID: &str = "The access token is not valid";

/// Where a client learns who issues the tokens (RFC 9728).
pub const RESOURCE_METADATA: &str = "/.well-known/oauth-protected-resource";

/// Returns the seconds since 1970; tests hand in another clock.
pub type Clock = fn() -> u64;

/// Returns the time of the system, in seconds since 1970.
pub fn system_clock() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// Verifies the tokens of requests.
#[derive(Clone)]
pub struct Authenticator(Arc<Inner>);

struct Inner {
    expected: Expected,
    issuer: Issuer,
    /// The services that may call this one, with their keys.
    services: Vec<(&'static str, KeySet)>,
    /// The name of this service, the audience of the tokens of other services.
    service: &'static str,
    verified: Verified,
    clock: Clock,
}

impl Authenticator {
    /// Returns the authenticator of `service`. `None` while sign-in is off, which is without `AUTH_ISSUER`.
    ///
    /// A service that issues the tokens itself hands in its own `keys`. Otherwise the keys of the issuer are fetched in the
    /// background, so this must be called within a runtime.
    ///
    /// # Errors
    /// If there is an issuer without an audience, or the HTTP client for the keys cannot be set up.
    pub fn new(
        service: &'static str,
        settings: &AuthSettings,
        keys: Option<KeySet>,
        services: Vec<(&'static str, KeySet)>,
    ) -> Result<Option<Self>, String> {
        Self::with_clock(service, settings, keys, services, system_clock)
    }

    /// Returns the same as [`Self::new`], with another clock for the times in tokens.
    ///
    /// # Errors
    /// See [`Self::new`].
    pub fn with_clock(
        service: &'static str,
        settings: &AuthSettings,
        keys: Option<KeySet>,
        services: Vec<(&'static str, KeySet)>,
        clock: Clock,
    ) -> Result<Option<Self>, String> {
        let Some(issuer) = &settings.issuer else { return Ok(None) };
        let audience = settings.audience.as_ref().ok_or("AUTH_AUDIENCE is needed with AUTH_ISSUER")?;
        crypto::install();
        let expected = Expected {
            issuer: issuer.clone(),
            audience: audience.clone(),
            roles_claim: settings.roles_claim.clone(),
            account_claim: settings.account_claim.clone(),
        };
        let issuer = match keys {
            Some(keys) => Issuer::with_keys(keys),
            None => Issuer::fetching(issuer, settings.jwks_url.clone())?,
        };
        let verified = Verified::default();
        Ok(Some(Self(Arc::new(Inner { expected, issuer, services, service, verified, clock }))))
    }

    /// Returns the issuer of the tokens, as it is set.
    pub fn issuer(&self) -> &str {
        &self.0.expected.issuer
    }

    /// Returns who makes a request with these headers. It may wait up to `limit` for keys to be fetched.
    ///
    /// # Errors
    /// 400 for a repeated `Authorization`, 401 for a token that is not valid, 503 while its key cannot be fetched.
    pub(crate) async fn authenticate(&self, headers: &HeaderMap, limit: Duration) -> Result<Caller, Problem> {
        let Some(token) = bearer_token(headers)? else { return Ok(Caller::Anonymous) };
        let now = (self.0.clock)();
        let generation = self.0.issuer.generation();
        if let Some(caller) = generation.and_then(|generation| self.0.verified.get(token, generation, now)) {
            return Ok(caller);
        }
        let (caller, expires_at) = self.verify(token, now, limit).await.map_err(|rejected| match rejected {
            NotVerified::Invalid(rejection) => invalid_token(rejection),
            NotVerified::Unavailable => {
                let detail = "The keys of the issuer cannot be fetched, so the token cannot be verified";
                Problem::new(&KEYS_UNAVAILABLE, detail).retry_after(5)
            }
        })?;
        // With the generation before the verification: meanwhile the key may have been removed.
        if let Some(generation) = generation {
            self.0.verified.add(token, caller.clone(), generation, expires_at);
        }
        Ok(caller)
    }

    async fn verify(&self, token: &str, now: u64, limit: Duration) -> Result<(Caller, u64), NotVerified> {
        let token = Unverified::parse(token)?;
        // The tokens of services name their key. A token without a name is from the issuer.
        let services = self.0.services.iter().filter(|_| token.header.kid.is_some());
        for (name, keys) in services {
            if let Some(key) = keys.find(&token.header)? {
                let expires_at = token.verify(key)?.check_service(name, self.0.service, now)?;
                return Ok((Caller::Service(name), expires_at));
            }
        }
        let key = self.0.issuer.find(&token.header, limit).await?;
        let (identity, expires_at) = token.verify(&key)?.check(&self.0.expected, now)?;
        Ok((Caller::Account(Arc::new(identity)), expires_at))
    }
}

/// Why a token was not verified.
enum NotVerified {
    /// The token is not valid.
    Invalid(Rejection),
    /// Its key cannot be fetched at the moment.
    Unavailable,
}

impl From<Rejection> for NotVerified {
    fn from(rejection: Rejection) -> Self {
        Self::Invalid(rejection)
    }
}

impl From<KeysUnavailable> for NotVerified {
    fn from(_: KeysUnavailable) -> Self {
        Self::Unavailable
    }
}

/// Returns the token of the header `Authorization: Bearer <token>`. Another scheme counts as no token.
fn bearer_token(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    let mut lines = headers.get_all(header::AUTHORIZATION).iter();
    let value = match (lines.next(), lines.next()) {
        (None, _) => return Ok(None),
        (Some(value), None) => value,
        (Some(_), Some(_)) => {
            let error = FieldError::in_parameter("authorization", "is given more than once");
            return Err(challenge(Problem::invalid(vec![error]), "Bearer error=\"invalid_request\""));
        }
    };
    let text = value.to_str().map_err(|_| invalid_token(Rejection::Malformed))?;
    match text.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Ok(Some(token.trim_matches(' '))),
        None if text.eq_ignore_ascii_case("bearer") => Err(invalid_token(Rejection::Malformed)),
        _ => Ok(None),
    }
}

/// Returns the problem of a token that is not valid. The reason is logged; the client learns only whether the token has expired.
fn invalid_token(rejection: Rejection) -> Problem {
    let detail = match rejection {
        Rejection::Expired => "The access token has expired",
        _ => NOT_VALID,
    };
    bad_token(detail).caused_by(rejection)
}

/// Returns the problem of a request without a token, for a call that needs one.
pub(crate) fn token_missing() -> Problem {
    challenge(Problem::new(&UNAUTHENTICATED, "This call needs an access token"), "Bearer")
}

/// Returns the problem of a token that another service has rejected, although this one accepts it.
pub fn token_rejected() -> Problem {
    bad_token(NOT_VALID)
}

fn bad_token(detail: &'static str) -> Problem {
    challenge(Problem::new(&UNAUTHENTICATED, detail), "Bearer error=\"invalid_token\"")
}

/// Returns the problem of a caller who may not make this call.
pub fn not_allowed() -> Problem {
    challenge(Problem::new(&INSUFFICIENT_SCOPE, "The caller may not do this"), "Bearer error=\"insufficient_scope\"")
}

/// Adds the challenge of RFC 6750. The pipeline adds `resource_metadata` to it, which depends on the host.
fn challenge(problem: Problem, value: &'static str) -> Problem {
    problem.with_header(header::WWW_AUTHENTICATE, HeaderValue::from_static(value))
}
