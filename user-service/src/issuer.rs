//! The issuer of access tokens, if this service is the issuer: its keys, its tokens and its admins.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Json;
use axum::http::header;
use axum::routing::{MethodRouter, get};
use chassis::App;
use chassis::auth::{KeySet, SigningKey, system_clock};
use chassis::config::AuthSettings;
use serde_json::{Value, json};
use shared::users::User;
use uuid::Uuid;

use crate::SERVICE;
use crate::config::Config;
use crate::guesses::Guesses;
use crate::password::Password;
use crate::user::case_fold;

/// How long a token is valid, in seconds.
pub const TOKEN_SECONDS: u64 = 900;
/// Caches may keep the keys for less time than a new key waits behind the one that signs.
const CACHE_CONTROL: &str = "public, max-age=300";
const KEYS: &str = "/.well-known/jwks.json";
const DISCOVERY: &str = "/.well-known/openid-configuration";

/// Signs the tokens of users, and knows which users are admins.
pub struct Issuer {
    settings: AuthSettings,
    /// The first one signs. All are published.
    keys: Vec<SigningKey>,
    admins: Admins,
    pub(crate) guesses: Guesses,
}

/// The usernames that get the role `admin`.
pub struct Admins {
    pub(crate) usernames: Vec<String>,
    /// The password of those that do not exist yet.
    pub(crate) password: Option<Password>,
    /// Whether the missing ones were created.
    pub(crate) exist: AtomicBool,
}

impl Issuer {
    /// Returns the issuer with the keys of these settings. `None` without keys: then another provider is the issuer.
    ///
    /// # Errors
    /// If a file cannot be used. The error names the file, and has no part of it.
    pub fn open(config: &Config) -> Result<Option<Self>, String> {
        let keys: Vec<SigningKey> =
            config.signing_key_files.iter().map(|file| SigningKey::from_file(file)).collect::<Result<_, _>>()?;
        let password = config.auth_admin_password_file.as_deref().map(read_password).transpose()?;
        let admins = Admins::new(config.auth_admins.clone(), password);
        let settings = config.settings.auth.clone();
        Ok((!keys.is_empty()).then(|| Self::new(settings, keys, admins, Guesses::default())))
    }

    /// Returns the issuer with these keys, of which the first one signs.
    pub fn new(settings: AuthSettings, keys: Vec<SigningKey>, admins: Admins, guesses: Guesses) -> Self {
        Self { settings, keys, admins, guesses }
    }

    /// Returns the keys that verify its tokens.
    pub fn key_set(&self) -> KeySet {
        KeySet::of(&self.keys)
    }

    /// Returns the admins.
    pub(crate) fn admins(&self) -> &Admins {
        &self.admins
    }

    /// Returns a new access token of this user.
    ///
    /// # Errors
    /// If it cannot be signed.
    pub(crate) fn token(&self, user: &User) -> Result<String, String> {
        let is_admin = user.username.as_deref().is_some_and(|username| self.admins.contains(username));
        let roles = if is_admin { json!(["admin"]) } else { json!([]) };
        let now = system_clock();
        let mut claims = json!({
            "iss": self.settings.issuer,
            "aud": self.settings.audience,
            "sub": user.id.to_string(),
            "client_id": SERVICE,
            "iat": now,
            "exp": now + TOKEN_SECONDS,
            "jti": Uuid::new_v4(),
            "roles": roles,
            "user_id": user.id,
        });
        // Services read these claims by the names of their settings.
        for (name, value) in [(&self.settings.roles_claim, roles), (&self.settings.account_claim, json!(user.id))] {
            if claims.get(name).is_none() {
                claims[name] = value;
            }
        }
        self.keys.first().ok_or("there is no key")?.sign(&claims)
    }

    /// Adds the documents that other services read: the public keys, and where they are (OpenID Connect Discovery).
    ///
    /// There is no endpoint of OAuth, so the document has only what a verifier of tokens reads.
    pub(crate) fn publish(&self, app: App) -> App {
        let keys: Vec<_> = self.keys.iter().map(SigningKey::public).collect();
        let issuer = self.settings.issuer.as_deref().unwrap_or_default();
        let metadata = json!({
            "issuer": issuer,
            "jwks_uri": format!("{}{KEYS}", issuer.trim_end_matches('/')),
            "response_types_supported": [],
            "grant_types_supported": [],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["EdDSA"],
        });
        app.with_public_route(KEYS, document(json!({"keys": keys}))).with_public_route(DISCOVERY, document(metadata))
    }
}

impl Admins {
    /// Returns the admins with these usernames. Those that do not exist yet get this password.
    pub fn new(usernames: Vec<String>, password: Option<Password>) -> Self {
        Self { usernames, password, exist: AtomicBool::new(false) }
    }

    /// Returns whether this username is one of the admins, in any case.
    pub(crate) fn contains(&self, username: &str) -> bool {
        let username = case_fold(username);
        self.usernames.iter().any(|admin| case_fold(admin) == username)
    }

    /// Returns whether all admins exist, as far as this service can create them.
    pub(crate) fn exist(&self) -> bool {
        self.usernames.is_empty() || self.exist.load(Ordering::Relaxed)
    }
}

fn document(json: Value) -> MethodRouter {
    get(async move || ([(header::CACHE_CONTROL, CACHE_CONTROL)], Json(json.clone())))
}

/// Reads a password from the only line of a file.
fn read_password(file: &Path) -> Result<Password, String> {
    let failed = |why: &str| format!("cannot read a password from {}: {why}", file.display());
    let text = fs::read_to_string(file).map_err(|error| failed(&error.kind().to_string()))?;
    let line = text.strip_suffix('\n').unwrap_or(&text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    let password = Password::parse(line.to_owned()).map_err(|detail| failed(&format!("it {detail}")))?;
    if line.contains('\n') {
        return Err(failed("it must have one line"));
    }
    if password.is_common() { Err(failed("it is one of the most common passwords")) } else { Ok(password) }
}
