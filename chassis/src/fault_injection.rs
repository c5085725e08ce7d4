//! Accidents and mistakes on demand, for those who check the checkers. Without the feature `fault-injection` there are none: the
//! macros here are nothing, and nobody who serves has the feature.
//!
//! That a crash does no harm is shown by crashing at every step, and not where a signal happens to arrive: [`crash_point!`]
//! names the steps. And tests that have never failed show nothing: [`mistake!`] marks where somebody may one day do what
//! looks as good and is not, so that each such test can be seen to fail.
//!
//! [`crash_point!`]: crate::crash_point
//! [`mistake!`]: crate::mistake

/// Ends the process here, as if by a power failure, when it comes by for the n-th time and `CRASH_AT=name:n` is in its
/// environment.
#[cfg(feature = "fault-injection")]
#[macro_export]
macro_rules! crash_point {
    ($name:literal) => {
        $crate::fault_injection::crash_point($name)
    };
}

/// Nothing: this is a build to be served.
#[cfg(not(feature = "fault-injection"))]
#[macro_export]
macro_rules! crash_point {
    ($name:literal) => {{}};
}

/// Whether to make this mistake: `MISTAKE=name` is in the environment, or several, parted by commas.
#[cfg(feature = "fault-injection")]
#[macro_export]
macro_rules! mistake {
    ($name:literal) => {
        $crate::fault_injection::mistake($name)
    };
}

/// No: this is a build to be served.
#[cfg(not(feature = "fault-injection"))]
#[macro_export]
macro_rules! mistake {
    ($name:literal) => {
        false
    };
}

#[cfg(feature = "fault-injection")]
pub use self::asked::{crash_point, mistake};

#[cfg(feature = "fault-injection")]
mod asked {
    use std::env;
    use std::process;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// What [`crate::crash_point!`] does.
    #[expect(clippy::print_stderr, reason = "there is no time left for a log")]
    pub fn crash_point(name: &str) {
        static PASSED: AtomicU64 = AtomicU64::new(0);
        static ASKED: OnceLock<Option<(String, u64)>> = OnceLock::new();
        let asked = ASKED.get_or_init(|| {
            let (name, nth) =
                env::var("CRASH_AT").ok()?.rsplit_once(':').map(|(name, nth)| (name.to_owned(), nth.parse()))?;
            Some((name, nth.expect("CRASH_AT=name:n")))
        });
        let Some((_, nth)) = asked.as_ref().filter(|(wanted, _)| wanted == name) else { return };
        if PASSED.fetch_add(1, Ordering::SeqCst) + 1 == *nth {
            eprintln!("CRASH_AT={name}:{nth}");
            process::abort();
        }
    }

    /// What [`crate::mistake!`] asks.
    pub fn mistake(name: &str) -> bool {
        static ASKED: OnceLock<Option<String>> = OnceLock::new();
        let asked = ASKED.get_or_init(|| env::var("MISTAKE").ok());
        asked.as_ref().is_some_and(|asked| asked.split(',').any(|asked| asked == name))
    }
}
