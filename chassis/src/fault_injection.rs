//! Hooks for tests, compiled only with the feature `fault-injection`. In a build that serves, the macros expand to nothing.
//!
//! [`crash_point!`] names the steps at which a test can crash the process. [`pause_point!`] and [`limit_point!`] let a test
//! decide which work shares a batch: a pause before a batch is collected fills it, a limit of one item empties it.
//!
//! [`crash_point!`]: crate::crash_point
//! [`pause_point!`]: crate::pause_point
//! [`limit_point!`]: crate::limit_point

/// Aborts the process at the n-th pass, as a power failure would, if the environment has `CRASH_AT=name:n`.
#[cfg(feature = "fault-injection")]
#[macro_export]
macro_rules! crash_point {
    ($name:literal) => {
        $crate::fault_injection::crash_point($name)
    };
}

/// Expands to nothing: the feature `fault-injection` is off.
#[cfg(not(feature = "fault-injection"))]
#[macro_export]
macro_rules! crash_point {
    ($name:literal) => {{}};
}

/// Sleeps at each pass if the environment has `PAUSE_AT=name:milliseconds`. Only for async code.
#[cfg(feature = "fault-injection")]
#[macro_export]
macro_rules! pause_point {
    ($name:literal) => {
        $crate::fault_injection::pause_point($name).await
    };
}

/// Expands to nothing: the feature `fault-injection` is off.
#[cfg(not(feature = "fault-injection"))]
#[macro_export]
macro_rules! pause_point {
    ($name:literal) => {{}};
}

/// Returns the limit, lowered to n if the environment has `LIMIT_AT=name:n`.
#[cfg(feature = "fault-injection")]
#[macro_export]
macro_rules! limit_point {
    ($name:literal, $limit:expr) => {
        $crate::fault_injection::limit_point($name, $limit)
    };
}

/// Expands to the limit: the feature `fault-injection` is off.
#[cfg(not(feature = "fault-injection"))]
#[macro_export]
macro_rules! limit_point {
    ($name:literal, $limit:expr) => {
        $limit
    };
}

#[cfg(feature = "fault-injection")]
pub use self::enabled::{crash_point, limit_point, pause_point};

#[cfg(feature = "fault-injection")]
mod enabled {
    use std::env;
    use std::process;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use tokio::time;

    /// A setting of the form `name:number`, read once.
    type Setting = OnceLock<Option<(String, u64)>>;

    /// Implements [`crate::crash_point!`].
    #[expect(clippy::print_stderr, reason = "the process aborts before a log line would be written")]
    pub fn crash_point(name: &str) {
        static PASSES: AtomicU64 = AtomicU64::new(0);
        static CRASH_AT: Setting = OnceLock::new();
        let Some(nth) = number(&CRASH_AT, "CRASH_AT", name) else { return };
        if PASSES.fetch_add(1, Ordering::SeqCst) + 1 == nth {
            eprintln!("CRASH_AT={name}:{nth}");
            process::abort();
        }
    }

    /// Implements [`crate::pause_point!`].
    pub async fn pause_point(name: &str) {
        static PAUSE_AT: Setting = OnceLock::new();
        if let Some(milliseconds) = number(&PAUSE_AT, "PAUSE_AT", name) {
            time::sleep(Duration::from_millis(milliseconds)).await;
        }
    }

    /// Implements [`crate::limit_point!`].
    pub fn limit_point(name: &str, limit: usize) -> usize {
        static LIMIT_AT: Setting = OnceLock::new();
        let lowered = number(&LIMIT_AT, "LIMIT_AT", name).and_then(|number| usize::try_from(number).ok());
        lowered.map_or(limit, |lowered| limit.min(lowered))
    }

    /// Returns the number that the variable gives to this point.
    fn number(setting: &'static Setting, variable: &str, point: &str) -> Option<u64> {
        let (name, number) = setting.get_or_init(|| read(variable)).as_ref()?;
        (name == point).then_some(*number)
    }

    fn read(variable: &str) -> Option<(String, u64)> {
        let value = env::var(variable).ok()?;
        let (name, number) = value.rsplit_once(':').expect("the variable has the form name:number");
        Some((name.to_owned(), number.parse().expect("the variable has the form name:number")))
    }
}
