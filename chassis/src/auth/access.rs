//! Who may make which call: the table of a service, and the caller of a request.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

use super::{Authenticator, not_allowed, token_missing};
use crate::problem::Problem;

/// The role that may make every call but those of services.
const ADMIN: &str = "admin";

/// One row of the table of a service: a call, and the callers who may make it.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// The method and the path template, such as `GET /things/{id}`.
    pub call: &'static str,
    /// Any of these may make the call.
    pub grants: &'static [Grant],
}

impl Rule {
    /// Returns the rule of a call.
    pub const fn new(call: &'static str, grants: &'static [Grant]) -> Self {
        Self { call, grants }
    }
}

/// The table of a service, and what verifies the tokens. Without it sign-in is off, and every caller may do everything.
#[derive(Clone)]
pub struct Access {
    /// Each call of the service has one rule.
    pub rules: &'static [Rule],
    /// Verifies the tokens of requests, while sign-in is on.
    pub authenticator: Option<Authenticator>,
}

/// Some callers of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grant {
    /// All callers, also without a token. A token is not looked at.
    Everybody,
    /// Every caller with an account. The handler shows only what belongs to it ([`Caller::reach`]).
    Account,
    /// The caller whose account is the last segment of the path.
    Owner,
    /// Callers with the role `admin`.
    Admin,
    /// The service of this name.
    Service(&'static str),
}

impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Everybody => f.write_str("everybody"),
            Self::Account => f.write_str("a signed-in account, for what belongs to it"),
            Self::Owner => f.write_str("the account with this id"),
            Self::Admin => f.write_str("an admin"),
            Self::Service(name) => f.write_str(name),
        }
    }
}

/// Who makes a request.
#[derive(Clone, Debug)]
pub enum Caller {
    /// Sign-in is off, so the caller is not known and may do everything.
    Unknown,
    /// The request has no token.
    Anonymous,
    /// The caller has a token of the issuer.
    Account(Arc<Identity>),
    /// The caller is a service with a key of its own.
    Service(&'static str),
}

/// What a token says about the caller.
#[derive(Debug, PartialEq, Eq)]
pub struct Identity {
    pub(super) issuer: String,
    pub(super) subject: String,
    pub(super) account: Option<i64>,
    pub(super) roles: Box<[String]>,
}

/// Whose entities a caller may see and change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// All.
    All,
    /// Those of one account; none if the token names no account.
    Own(Option<i64>),
}

impl Caller {
    /// Returns whose entities the caller may see and change.
    pub fn reach(&self) -> Reach {
        match self {
            Self::Unknown | Self::Service(_) => Reach::All,
            Self::Account(identity) if identity.is_admin() => Reach::All,
            Self::Account(identity) => Reach::Own(identity.account),
            Self::Anonymous => Reach::Own(None),
        }
    }

    /// Returns the account of the caller, if the token names one.
    pub fn account(&self) -> Option<i64> {
        match self {
            Self::Account(identity) => identity.account,
            _ => None,
        }
    }

    /// Returns whether the caller is a service, which may do less with some calls than an admin.
    pub fn is_service(&self) -> bool {
        matches!(self, Self::Service(_))
    }

    /// Returns a text that is different for every caller, for keys that belong to a caller. `None` while sign-in is off.
    pub fn scope(&self) -> Option<String> {
        match self {
            Self::Unknown => None,
            Self::Anonymous => Some(String::new()),
            Self::Account(identity) => Some(format!("{}\n{}", identity.issuer, identity.subject)),
            Self::Service(name) => Some((*name).to_owned()),
        }
    }
}

impl Identity {
    fn is_admin(&self) -> bool {
        self.roles.iter().any(|role| role == ADMIN)
    }
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Infallible;

    /// Returns the caller that the pipeline has found. It finds one for each request while sign-in is on.
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(parts.extensions.get().cloned().unwrap_or(Self::Unknown))
    }
}

/// Checks whether the caller may make a call with these grants at this path.
///
/// # Errors
/// 401 if the caller has no token, otherwise 403.
pub(crate) fn check(grants: &[Grant], caller: &Caller, path: &str) -> Result<(), Problem> {
    let is_granted = |grant: &Grant| match (grant, caller) {
        (Grant::Everybody, _) => true,
        (Grant::Account, Caller::Account(_)) => true,
        (Grant::Owner, Caller::Account(identity)) => {
            let owner = path.rsplit('/').next().and_then(|id| id.parse::<i64>().ok());
            owner.is_some() && owner == identity.account
        }
        (Grant::Admin, Caller::Account(identity)) => identity.is_admin(),
        (Grant::Service(name), Caller::Service(caller)) => name == caller,
        _ => false,
    };
    match caller {
        _ if grants.iter().any(is_granted) => Ok(()),
        Caller::Anonymous => Err(token_missing()),
        _ => Err(not_allowed()),
    }
}

/// Returns the grants of a call, given its method and its path template. A call without a rule has none.
pub(crate) fn grants(rules: &'static [Rule], method: &str, path: &str) -> &'static [Grant] {
    let is_call = |rule: &&Rule| rule.call.split_once(' ') == Some((method, path));
    rules.iter().find(is_call).map_or(&[], |rule| rule.grants)
}
