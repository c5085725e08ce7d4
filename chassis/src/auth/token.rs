//! One access token: a JWT (RFC 7519) with the claims of RFC 9068.

use std::fmt;

use axum::http::HeaderValue;
use jsonwebtoken::{Header, Validation, decode, decode_header};
use serde_json::{Map, Value};

use super::access::Identity;
use super::keys::Key;

/// Maximum bytes of a token. Tokens of providers with many roles have 2 to 4 KiB.
const MAX_BYTES: usize = 8 << 10;
/// How far the clock of the issuer may be ahead or behind, in seconds.
const LEEWAY: u64 = 10;
/// Maximum length of `iss`, `sub` and each role that is kept, in bytes.
const MAX_TEXT: usize = 255;
/// Maximum roles that are kept.
const MAX_ROLES: usize = 256;

/// Why a token is not valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rejection {
    /// It is no JWT, is too long, or has a header that must be understood and is not.
    Malformed,
    /// It is another kind of JWT than an access token.
    WrongType,
    /// Its algorithm is not accepted, or is not that of the key.
    WrongAlgorithm,
    /// No key has its `kid`.
    UnknownKey,
    /// The signature is not that of the key.
    BadSignature,
    /// A claim is missing or has the wrong type.
    BadClaims,
    /// `iss` is another issuer.
    WrongIssuer,
    /// `aud` does not name this service.
    WrongAudience,
    /// `exp` has passed.
    Expired,
    /// `nbf` or `iat` is in the future.
    NotYetValid,
    /// It is bound to a key of the client (`cnf`, RFC 7800), which a bearer cannot prove.
    SenderConstrained,
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Malformed => "the token is malformed",
            Self::WrongType => "the token is no access token",
            Self::WrongAlgorithm => "the algorithm of the token is not accepted",
            Self::UnknownKey => "no key has the id of the token",
            Self::BadSignature => "the signature of the token is wrong",
            Self::BadClaims => "a claim of the token is missing or wrong",
            Self::WrongIssuer => "the token is from another issuer",
            Self::WrongAudience => "the token is for another audience",
            Self::Expired => "the token has expired",
            Self::NotYetValid => "the token is not valid yet",
            Self::SenderConstrained => "the token is bound to a key",
        })
    }
}

/// What the token of a user must have, and where its roles and its account are.
pub(super) struct Expected {
    pub(super) issuer: String,
    pub(super) audience: String,
    pub(super) roles_claim: String,
    pub(super) account_claim: String,
}

/// A token whose signature was not verified yet. Only its header may be used, to find the key.
pub(super) struct Unverified<'a> {
    text: &'a str,
    pub(super) header: Header,
}

impl<'a> Unverified<'a> {
    /// Parses the header of a token.
    ///
    /// # Errors
    /// If it is no JWT of an accepted type.
    pub(super) fn parse(text: &'a str) -> Result<Self, Rejection> {
        if text.len() > MAX_BYTES {
            return Err(Rejection::Malformed);
        }
        let header = decode_header(text).map_err(|_| Rejection::Malformed)?;
        // An ID token, a logout token or a security event is signed by the same key. RFC 9068 has `at+jwt`, and many providers `JWT`.
        let is_access_token = match &header.typ {
            None => true,
            Some(typ) => {
                ["at+jwt", "application/at+jwt", "jwt"].iter().any(|accepted| typ.eq_ignore_ascii_case(accepted))
            }
        };
        if header.crit.is_some() || header.zip.is_some() || header.enc.is_some() {
            return Err(Rejection::Malformed); // RFC 7515: what is critical and not understood makes a token invalid
        }
        if is_access_token { Ok(Self { text, header }) } else { Err(Rejection::WrongType) }
    }

    /// Verifies the signature, with the algorithm of the key.
    ///
    /// # Errors
    /// If the token has another algorithm or a wrong signature.
    pub(super) fn verify(&self, key: &Key) -> Result<Claims, Rejection> {
        if self.header.alg != key.algorithm {
            return Err(Rejection::WrongAlgorithm);
        }
        let mut validation = Validation::new(key.algorithm);
        // `Claims::check` checks the claims, with a clock that tests can hand in.
        (validation.validate_exp, validation.validate_aud) = (false, false);
        validation.required_spec_claims.clear();
        let token = decode::<Map<String, Value>>(self.text, &key.key, &validation);
        token.map(|token| Claims(token.claims)).map_err(|_| Rejection::BadSignature)
    }
}

/// The claims of a token whose signature is that of its key.
pub(super) struct Claims(Map<String, Value>);

impl Claims {
    /// Checks the token of a user. Returns the user, and when the token expires, in seconds since 1970.
    ///
    /// # Errors
    /// If a claim is missing or not as expected.
    pub(super) fn check(&self, expected: &Expected, now: u64) -> Result<(Identity, u64), Rejection> {
        let expires_at = self.check_common(&expected.issuer, &expected.audience, now)?;
        let subject = self.text("sub").ok_or(Rejection::BadClaims)?;
        let identity = Identity {
            issuer: expected.issuer.clone(),
            subject: subject.to_owned(),
            account: self.find(&expected.account_claim).and_then(account),
            roles: self.find(&expected.roles_claim).map(roles).unwrap_or_default(),
        };
        Ok((identity, expires_at))
    }

    /// Checks the token of the service `name` that calls `audience`. Returns when it expires.
    ///
    /// # Errors
    /// If a claim is missing or not as expected.
    pub(super) fn check_service(&self, name: &str, audience: &str, now: u64) -> Result<u64, Rejection> {
        let expires_at = self.check_common(name, audience, now)?;
        if self.text("sub") != Some(name) || self.text("client_id") != Some(name) {
            return Err(Rejection::BadClaims);
        }
        Ok(expires_at)
    }

    fn check_common(&self, issuer: &str, audience: &str, now: u64) -> Result<u64, Rejection> {
        if self.text("iss").ok_or(Rejection::BadClaims)? != issuer {
            return Err(Rejection::WrongIssuer);
        }
        match self.0.get("aud") {
            Some(Value::String(one)) if one == audience => {}
            Some(Value::Array(several)) if several.iter().any(|one| one == audience) => {}
            Some(Value::String(_) | Value::Array(_)) => return Err(Rejection::WrongAudience),
            _ => return Err(Rejection::BadClaims),
        }
        if self.0.contains_key("cnf") {
            return Err(Rejection::SenderConstrained);
        }
        let expires_at = self.time("exp")?.ok_or(Rejection::BadClaims)?;
        if expires_at.saturating_add(LEEWAY) <= now {
            return Err(Rejection::Expired);
        }
        for claim in ["nbf", "iat"] {
            if self.time(claim)?.is_some_and(|from| from > now + LEEWAY) {
                return Err(Rejection::NotYetValid);
            }
        }
        Ok(expires_at.saturating_add(LEEWAY))
    }

    /// Returns a claim that is a text of a sane length, which can stand in a header.
    fn text(&self, claim: &str) -> Option<&str> {
        let is_sane = |text: &&str| (1..=MAX_TEXT).contains(&text.len()) && HeaderValue::from_str(text).is_ok();
        self.0.get(claim)?.as_str().filter(is_sane)
    }

    /// Returns a `NumericDate`: seconds since 1970, which may have a fraction.
    fn time(&self, claim: &str) -> Result<Option<u64>, Rejection> {
        let Some(value) = self.0.get(claim) else { return Ok(None) };
        let seconds = value.as_f64().filter(|seconds| *seconds >= 0.0).ok_or(Rejection::BadClaims)?;
        Ok(Some(seconds as u64)) // saturates
    }

    /// Returns the claim of this name, or at this path: `realm_access.roles`. The name counts first, because names can be URLs.
    fn find(&self, path: &str) -> Option<&Value> {
        self.0.get(path).or_else(|| {
            let mut steps = path.split('.');
            let first = self.0.get(steps.next()?)?;
            steps.try_fold(first, |value, step| value.get(step))
        })
    }
}

/// Returns the account of a claim: a whole number from 1, or its decimal digits.
fn account(value: &Value) -> Option<i64> {
    let number = match value {
        Value::Number(number) => number.as_i64(),
        Value::String(text) => text.parse().ok().filter(|number: &i64| number.to_string() == *text),
        _ => None,
    };
    number.filter(|number| *number >= 1)
}

/// Returns the roles of a claim: an array of texts, or a text with blanks between the roles.
fn roles(value: &Value) -> Box<[String]> {
    let is_sane = |role: &&str| (1..=MAX_TEXT).contains(&role.len());
    match value {
        Value::Array(roles) => {
            roles.iter().filter_map(Value::as_str).filter(is_sane).take(MAX_ROLES).map(str::to_owned).collect()
        }
        Value::String(text) => text.split(' ').filter(is_sane).take(MAX_ROLES).map(str::to_owned).collect(),
        _ => Box::default(),
    }
}
