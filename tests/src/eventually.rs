//! Waiting for a condition with a deadline, never for a time.

use std::{fmt::Display, future::Future, time::Duration};

use anyhow::{Result, anyhow};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

/// How often a condition is looked at: often enough to measure the 1 s in which an edit must arrive.
const PERIOD: Duration = Duration::from_millis(10);

/// Looks at `condition` until it holds, and returns what it gave and after how long.
///
/// # Errors
/// At the deadline, with the last reason why it did not hold.
pub async fn eventually<T, F, Fut>(
    what: impl Display,
    deadline: Duration,
    mut condition: F,
) -> Result<(T, Duration)>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T>>,
{
    let start = Instant::now();
    let mut last = anyhow!("it was never looked at");
    let waiting = async {
        let mut ticks = interval(PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            match condition().await {
                Ok(value) => return value,
                Err(e) => last = e,
            }
        }
    };
    match timeout(deadline, Box::pin(waiting)).await {
        Ok(value) => Ok((value, start.elapsed())),
        Err(_elapsed) => Err(last.context(format!("not within {deadline:?}: {what}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn gives_the_value_or_the_last_reason() {
        let mut left = 3;
        let counted = eventually("three looks", Duration::from_secs(1), || {
            left -= 1;
            let seen = left;
            async move {
                if seen == 0 {
                    Ok("done")
                } else {
                    Err(anyhow!("{seen} left"))
                }
            }
        });
        assert_eq!(counted.await.unwrap().0, "done");

        let never = eventually("a wonder", Duration::from_secs(1), || async {
            Err::<(), _>(anyhow!("none yet"))
        });
        let error = format!("{:#}", never.await.unwrap_err());
        assert_eq!(error, "not within 1s: a wonder: none yet");
    }
}
