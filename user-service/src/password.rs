//! Passwords: hashed with argon2id off the async threads, and never to be seen.

use std::sync::Arc;
use std::thread;

use argon2::Argon2;
use argon2::password_hash::PasswordHasher;
use chassis::values::Detail;
use tokio::sync::Semaphore;
use tokio::task;

/// A password as a client sent it. It has no `Debug`, no `Display` and no `Serialize`, so nothing can show it by mistake.
pub struct Password(String);

/// What is kept of a password, in the PHC string format. It shows itself to nobody but a store that writes it down.
#[derive(Clone)]
pub struct PasswordHash(Box<str>);

impl Password {
    /// A password of 8 to 128 characters.
    pub fn parse(text: String) -> Result<Self, Detail> {
        if !(8..=128).contains(&text.chars().count()) {
            return Err("must be 8 to 128 characters".into());
        }
        Ok(Self(text))
    }
}

impl PasswordHash {
    /// The PHC string: for the store, and nobody else.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

/// Hashes passwords, at most as many at once as there are cores. A hash is made to cost time (argon2id with OWASP's
/// minimum: 19 MiB, two passes), and must not take it from the threads that answer everybody else.
#[derive(Clone)]
pub struct Hasher(Arc<Semaphore>);

impl Default for Hasher {
    fn default() -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        Self(Arc::new(Semaphore::new(cores)))
    }
}

impl Hasher {
    /// The hash of a password, if there is one.
    ///
    /// # Errors
    /// If the hash cannot be made, which takes a machine without randomness or memory.
    pub async fn hash_some(&self, password: Option<Password>) -> Result<Option<PasswordHash>, String> {
        let Some(Password(text)) = password else { return Ok(None) };
        let place = Arc::clone(&self.0).acquire_owned().await.map_err(|error| error.to_string())?;
        let hashed = task::spawn_blocking(move || {
            let _place = place; // kept until the work is done, also if the client goes away
            Argon2::default().hash_password(text.as_bytes()).map(|hash| hash.to_string())
        });
        let hash = hashed.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        Ok(Some(PasswordHash(hash.into())))
    }
}

#[cfg(test)]
mod tests {
    use argon2::password_hash::{PasswordVerifier, phc};

    use super::*;

    #[tokio::test]
    async fn a_hash_verifies_its_password_and_no_other() {
        let password = Password::parse("correct horse".to_owned()).ok();
        let hash = Hasher::default().hash_some(password).await.unwrap().unwrap();
        assert!(hash.expose().starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{}", hash.expose());
        let parsed = phc::PasswordHash::new(hash.expose()).unwrap();
        assert!(Argon2::default().verify_password(b"correct horse", &parsed).is_ok());
        assert!(Argon2::default().verify_password(b"correct house", &parsed).is_err());
    }

    #[test]
    fn a_password_counts_characters_not_bytes() {
        let length = |password: &str| Password::parse(password.to_owned()).is_ok();
        assert!(!length("1234567") && length("12345678"));
        assert!(!length("äöüäöüä") && length("äöüäöüäö"), "fourteen bytes are seven characters");
        assert!(length(&"ü".repeat(128)) && !length(&"ü".repeat(129)));
    }
}
