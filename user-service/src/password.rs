//! Passwords: hashed with argon2id outside the async threads, and never shown.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use argon2::password_hash::{Error, PasswordHasher, PasswordVerifier, phc};
use argon2::{Argon2, Params};
use chassis::http::body::values::Detail;
use tokio::sync::Semaphore;
use tokio::task;
use unicode_normalization::UnicodeNormalization;

/// The most common passwords, one a line, in lower case; comments start with `# `.
const COMMON: &str = include_str!("common_passwords.txt");

/// A password as a client sent it. It is hashed in Unicode NFC, because keyboards send the same letter in different forms
/// (RFC 8265). Without `Debug`, `Display` and `Serialize`, no code can show it by mistake.
#[derive(Clone)]
pub struct Password(String);

/// The hash of a password in the PHC string format. Without `Debug`, `Display` and `Serialize`, like [`Password`].
#[derive(Clone)]
pub struct PasswordHash(Box<str>);

impl Password {
    /// Accepts a text of 8 to 128 characters, counted in Unicode NFC.
    ///
    /// # Errors
    /// If the text is shorter or longer.
    pub fn parse(text: String) -> Result<Self, Detail> {
        if !(8..=128).contains(&text.nfc().count()) {
            return Err("must be 8 to 128 characters".into());
        }
        Ok(Self(text))
    }

    /// Accepts what a sign-in compares with a password: 1 to 128 characters.
    ///
    /// # Errors
    /// If the text is empty or longer.
    pub fn parse_guess(text: String) -> Result<Self, Detail> {
        if !(1..=128).contains(&text.nfc().count()) {
            return Err("must be 1 to 128 characters".into());
        }
        Ok(Self(text))
    }

    /// Returns whether it is one of the 3,000 most common passwords, in any case.
    pub fn is_common(&self) -> bool {
        let password = self.0.to_lowercase();
        COMMON.lines().any(|common| common == password && !common.starts_with("# "))
    }
}

/// The result of comparing a password with a hash.
#[derive(Clone)]
pub enum Verdict {
    /// It is another password.
    Wrong,
    /// It is the password.
    Right,
    /// It is the password, and its hash has weaker parameters than a new one. This is the new one.
    Upgraded(PasswordHash),
}

impl PasswordHash {
    /// Wraps a hash that a store has kept.
    pub fn stored(phc: String) -> Self {
        Self(phc.into())
    }

    /// Returns the PHC string, for a store to keep.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Returns whether a new hash has stronger parameters.
    fn is_outdated(&self) -> bool {
        let new = Params::default();
        let params = phc::PasswordHash::new(&self.0).ok().and_then(|hash| Params::try_from(&hash).ok());
        let is_weaker = params.is_none_or(|old| old.m_cost() < new.m_cost() || old.t_cost() < new.t_cost());
        is_weaker || !self.0.starts_with("$argon2id$v=19$")
    }
}

/// Hashes passwords with argon2id, a limited number concurrently.
///
/// One hash takes about 20 ms of a core and 19 MiB of memory (two passes, the minimum of OWASP). Without a limit, many
/// registrations would leave no core for other requests.
#[derive(Clone)]
pub struct Hasher {
    /// A permit for each password that is being hashed.
    running: Arc<Semaphore>,
    /// A permit for each password that is being hashed or waits.
    queue: Arc<Semaphore>,
    work: Arc<Work>,
}

/// Why a password was not hashed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum HashError {
    /// The queue is full.
    #[error("too many passwords wait to be hashed")]
    Busy,
    /// The machine has no randomness or no memory left.
    #[error("cannot hash the password: {0}")]
    Failed(String),
}

impl Hasher {
    /// Creates a hasher for `concurrent` passwords (0: half of the cores) and a queue for `waiting` more.
    pub fn new(concurrent: u32, waiting: u32) -> Self {
        let half_of_the_cores = || thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(2));
        let concurrent = if concurrent == 0 { half_of_the_cores() } else { concurrent as usize };
        let queue = concurrent + waiting as usize;
        Self {
            running: Arc::new(Semaphore::new(concurrent)),
            queue: Arc::new(Semaphore::new(queue)),
            work: Arc::default(),
        }
    }

    /// Returns the hash of the password, or `None` without a password.
    ///
    /// # Errors
    /// If the queue is full, or the hash cannot be made.
    pub async fn hash_optional(&self, password: Option<Password>) -> Result<Option<PasswordHash>, HashError> {
        let Some(Password(text)) = password else { return Ok(None) };
        self.run(move |work| work.hash(&text.nfc().collect::<String>())).await.map(Some)
    }

    /// Compares a password with a hash. Without a hash it does the same work, and the verdict is [`Verdict::Wrong`].
    ///
    /// # Errors
    /// If the queue is full, or the hash is damaged.
    pub async fn verify(&self, Password(text): Password, stored: Option<PasswordHash>) -> Result<Verdict, HashError> {
        self.run(move |work| {
            let normalized: String = text.nfc().collect();
            // Earlier releases hashed the text as it was sent.
            let as_sent = Some(&text).filter(|text| **text != normalized);
            for form in [Some(&normalized), as_sent].into_iter().flatten() {
                match work.compare(form, stored.as_ref()) {
                    Ok(is_outdated) if is_outdated || *form != normalized => {
                        return work.hash(&normalized).map(Verdict::Upgraded);
                    }
                    Ok(_) => return Ok(Verdict::Right),
                    Err(Error::PasswordInvalid) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(Verdict::Wrong)
        })
        .await
    }

    /// Returns how many passwords were hashed or compared.
    pub fn done(&self) -> u64 {
        self.work.done.load(Ordering::Relaxed)
    }

    /// Does work that takes as long as a hash, on a thread of its own.
    async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Work) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, HashError> {
        let queued = Arc::clone(&self.queue).try_acquire_owned().map_err(|_| HashError::Busy)?;
        let running = Arc::clone(&self.running).acquire_owned().await.map_err(failed)?;
        let work = Arc::clone(&self.work);
        let result = task::spawn_blocking(move || {
            let _permits = (queued, running); // held until the thread is done, even if the client disconnects before
            job(&work)
        });
        result.await.map_err(failed)?.map_err(failed)
    }
}

/// What takes the time. It is counted, so that tests can compare the work of two calls.
#[derive(Default)]
struct Work {
    done: AtomicU64,
}

impl Work {
    fn hash(&self, password: &str) -> Result<PasswordHash, Error> {
        self.done.fetch_add(1, Ordering::Relaxed);
        Argon2::default().hash_password(password.as_bytes()).map(|hash| PasswordHash(hash.to_string().into()))
    }

    /// Returns whether the hash, which is that of the password, is outdated. Without a hash it does the same work, and fails.
    fn compare(&self, password: &str, stored: Option<&PasswordHash>) -> Result<bool, Error> {
        let Some(stored) = stored else { return self.hash(password).and(Err(Error::PasswordInvalid)) };
        self.done.fetch_add(1, Ordering::Relaxed);
        Argon2::default().verify_password(password.as_bytes(), stored.expose()).map(|()| stored.is_outdated())
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

    fn password() -> Option<Password> {
        Password::parse("correct horse".to_owned()).ok()
    }

    #[tokio::test]
    async fn verifies_the_hashed_password_and_no_other() {
        let hash = Hasher::new(0, 0).hash_optional(password()).await.unwrap().unwrap();
        assert!(hash.expose().starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{}", hash.expose());
        let parsed = phc::PasswordHash::new(hash.expose()).unwrap();
        assert!(Argon2::default().verify_password(b"correct horse", &parsed).is_ok());
        assert!(Argon2::default().verify_password(b"correct house", &parsed).is_err());
    }

    #[tokio::test]
    async fn is_busy_while_the_queue_is_full() {
        let hasher = Hasher::new(1, 2);
        let hash = || async { hasher.hash_optional(password()).await.map(|_| ()) };
        let (a, b, c, d, e) = tokio::join!(hash(), hash(), hash(), hash(), hash());
        assert_eq!([a, b, c, d, e], [Ok(()), Ok(()), Ok(()), Err(HashError::Busy), Err(HashError::Busy)]);
        assert_eq!(hash().await, Ok(()));
    }

    #[tokio::test]
    async fn hashes_up_to_the_limit_concurrently() {
        let hasher = Hasher::new(2, 8);
        let hash = || async { hasher.hash_optional(password()).await.is_ok() };
        let mut first = Box::pin(hash());
        assert!(first.as_mut().now_or_never().is_none());
        assert_eq!(hasher.running.available_permits(), 1, "the first password is being hashed");
        let mut others: Vec<_> = (0..4).map(|_| Box::pin(hash())).collect();
        assert!(others.iter_mut().all(|other| other.as_mut().now_or_never().is_none()));
        assert_eq!((hasher.running.available_permits(), hasher.queue.available_permits()), (0, 5));
        assert!(first.await && futures_util::future::join_all(others).await.into_iter().all(|hashed| hashed));
        assert_eq!((hasher.running.available_permits(), hasher.queue.available_permits()), (2, 10));
    }

    #[tokio::test]
    async fn accepts_each_unicode_form_of_a_password() {
        const COMPOSED: &str = "caf\u{e9} au lait";
        const DECOMPOSED: &str = "cafe\u{301} au lait";
        let hasher = Hasher::new(0, 0);
        let hash = |text: &str| hasher.hash_optional(Password::parse(text.to_owned()).ok());
        let verdict = async |text: &str, hash| hasher.verify(Password(text.to_owned()), hash).await.unwrap();
        let (composed, decomposed) = (hash(COMPOSED).await.unwrap(), hash(DECOMPOSED).await.unwrap());
        assert!(matches!(verdict(DECOMPOSED, composed.clone()).await, Verdict::Right));
        assert!(matches!(verdict(COMPOSED, decomposed).await, Verdict::Right));
        assert!(matches!(verdict("cafe au lait", composed).await, Verdict::Wrong));

        let of_an_earlier_release = hasher.work.hash(DECOMPOSED).unwrap();
        assert!(matches!(verdict(COMPOSED, Some(of_an_earlier_release.clone())).await, Verdict::Wrong));
        let Verdict::Upgraded(hash) = verdict(DECOMPOSED, Some(of_an_earlier_release)).await else {
            panic!("a new hash")
        };
        assert!(matches!(verdict(COMPOSED, Some(hash)).await, Verdict::Right));
    }

    #[tokio::test]
    async fn does_the_same_work_with_and_without_a_hash() {
        for (text, times) in [("correct house", 1), ("cafe\u{301} au lait", 2)] {
            let hasher = Hasher::new(0, 0);
            let hash = hasher.work.hash("correct horse").unwrap();
            for stored in [Some(hash), None] {
                let before = hasher.done();
                assert!(matches!(hasher.verify(Password(text.to_owned()), stored).await, Ok(Verdict::Wrong)));
                assert_eq!(hasher.done() - before, times, "{text}");
            }
        }
    }

    #[test]
    fn counts_characters_not_bytes() {
        let is_accepted = |password: &str| Password::parse(password.to_owned()).is_ok();
        assert!(!is_accepted("1234567") && is_accepted("12345678"));
        assert!(!is_accepted("äöüäöüä") && is_accepted("äöüäöüäö"), "14 bytes are 7 characters");
        assert!(is_accepted(&"ü".repeat(128)) && !is_accepted(&"ü".repeat(129)));
    }
}
