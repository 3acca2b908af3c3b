//! Waiting for a state. A deadline guards against hanging only: nothing is concluded from how long
//! something took, and when it passes, what was seen last is printed.

use std::{
    fmt::Display,
    thread,
    time::{Duration, Instant, SystemTime},
};

use dormouse_management_sdk::Timestamp;

/// No state that a test waits for takes nearly so long, also on a busy machine.
pub const DEADLINE: Duration = Duration::from_mins(2);

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// Looks until `look` answers; an error says what it saw instead.
pub async fn until<T, E: Display>(what: &str, mut look: impl AsyncFnMut() -> Result<T, E>) -> T {
    let begun = Instant::now();
    loop {
        let seen = match look().await {
            Ok(answer) => return answer,
            Err(seen) => seen.to_string(),
        };
        give_up_late(begun, what, &seen);
        tokio::time::sleep(PAUSE).await;
    }
}

/// As [`until`], for code without a runtime.
pub fn until_blocking<T>(what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let begun = Instant::now();
    loop {
        let seen = match look() {
            Ok(answer) => return answer,
            Err(seen) => seen,
        };
        give_up_late(begun, what, &seen);
        thread::sleep(PAUSE);
    }
}

fn give_up_late(begun: Instant, what: &str, seen: &str) {
    assert!(begun.elapsed() < DEADLINE, "waited {} s until {what}; seen last: {seen}", DEADLINE.as_secs());
}

/// Waits until the machine's clock has passed this moment.
pub async fn until_clock(moment: Timestamp) {
    until(
        "the clock has passed a moment",
        async || {
            if now() > moment { Ok(()) } else { Err("it is earlier") }
        },
    )
    .await;
}

/// The machine's clock.
pub fn now() -> Timestamp {
    Timestamp::from(SystemTime::now())
}
