//! Passwords: hashed with argon2id off the async threads, and never to be seen.

use std::sync::Arc;
use std::thread;

use argon2::Argon2;
use argon2::password_hash::PasswordHasher;
use chassis::http::body::values::Detail;
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
    /// What a store wrote down.
    pub fn stored(phc: String) -> Self {
        Self(phc.into())
    }

    /// The PHC string: for the store, and nobody else.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

/// Hashes passwords, a few at once. A hash is made to cost time and memory (argon2id with OWASP's minimum: two passes over
/// 19 MiB, some 20 ms), and must not take it from the threads that answer everybody else.
#[derive(Clone)]
pub struct Hasher {
    at_once: Arc<Semaphore>,
    /// A place for each password that is being hashed or waits for it.
    queue: Arc<Semaphore>,
}

/// Why there is no hash.
#[derive(Debug, PartialEq, Eq)]
pub enum HashError {
    /// So many wait already that this one would wait too long.
    Busy,
    /// It cannot be made, which takes a machine without randomness or memory.
    Failed(String),
}

impl Hasher {
    /// One that hashes so many passwords at once (0 is half of the cores) and lets so many wait.
    pub fn new(at_once: u32, waiting: u32) -> Self {
        let half_of_the_cores = || thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(2));
        let at_once = if at_once == 0 { half_of_the_cores() } else { at_once as usize };
        let queue = at_once + waiting as usize;
        Self { at_once: Arc::new(Semaphore::new(at_once)), queue: Arc::new(Semaphore::new(queue)) }
    }

    /// The hash of a password, if there is one.
    ///
    /// # Errors
    /// If too many wait for theirs, or it cannot be made.
    pub async fn hash_optional(&self, password: Option<Password>) -> Result<Option<PasswordHash>, HashError> {
        let Some(Password(text)) = password else { return Ok(None) };
        let queued = Arc::clone(&self.queue).try_acquire_owned().map_err(|_| HashError::Busy)?;
        let turn = Arc::clone(&self.at_once).acquire_owned().await.map_err(failed)?;
        let hashed = task::spawn_blocking(move || {
            let _places = (queued, turn); // kept until the work is done, also if the client goes away
            Argon2::default().hash_password(text.as_bytes()).map(|hash| hash.to_string())
        });
        let hash = hashed.await.map_err(failed)?.map_err(failed)?;
        Ok(Some(PasswordHash(hash.into())))
    }
}

fn failed(error: impl ToString) -> HashError {
    HashError::Failed(error.to_string())
}

#[cfg(test)]
mod tests {
    use argon2::password_hash::{PasswordVerifier, phc};
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_hash_verifies_its_password_and_no_other() {
        let password = Password::parse("correct horse".to_owned()).ok();
        let hash = Hasher::new(0, 0).hash_optional(password).await.unwrap().unwrap();
        assert!(hash.expose().starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{}", hash.expose());
        let parsed = phc::PasswordHash::new(hash.expose()).unwrap();
        assert!(Argon2::default().verify_password(b"correct horse", &parsed).is_ok());
        assert!(Argon2::default().verify_password(b"correct house", &parsed).is_err());
    }

    #[tokio::test]
    async fn beyond_those_that_may_wait_it_is_busy_and_then_it_is_not() {
        let hasher = Hasher::new(1, 2);
        let hash =
            || async { hasher.hash_optional(Password::parse("correct horse".to_owned()).ok()).await.map(|_| ()) };
        let (a, b, c, d, e) = tokio::join!(hash(), hash(), hash(), hash(), hash());
        assert_eq!([a, b, c, d, e], [Ok(()), Ok(()), Ok(()), Err(HashError::Busy), Err(HashError::Busy)]);
        assert_eq!(hash().await, Ok(()));
    }

    #[tokio::test]
    async fn so_many_are_hashed_at_once_and_the_others_wait() {
        let hasher = Hasher::new(2, 8);
        let hash = || async { hasher.hash_optional(Password::parse("correct horse".to_owned()).ok()).await.is_ok() };
        let mut one = Box::pin(hash());
        assert!(one.as_mut().now_or_never().is_none());
        assert_eq!(hasher.at_once.available_permits(), 1, "it is being hashed");
        let mut others: Vec<_> = (0..4).map(|_| Box::pin(hash())).collect();
        assert!(others.iter_mut().all(|other| other.as_mut().now_or_never().is_none()));
        assert_eq!((hasher.at_once.available_permits(), hasher.queue.available_permits()), (0, 5));
        assert!(one.await && futures_util::future::join_all(others).await.into_iter().all(|hashed| hashed));
        assert_eq!((hasher.at_once.available_permits(), hasher.queue.available_permits()), (2, 10));
    }

    #[test]
    fn a_password_counts_characters_not_bytes() {
        let length = |password: &str| Password::parse(password.to_owned()).is_ok();
        assert!(!length("1234567") && length("12345678"));
        assert!(!length("äöüäöüä") && length("äöüäöüäö"), "fourteen bytes are seven characters");
        assert!(length(&"ü".repeat(128)) && !length(&"ü".repeat(129)));
    }
}
