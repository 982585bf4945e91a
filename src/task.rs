//! Named, supervised tasks, and their orderly stop.
//!
//! A task that fails or panics is started again with back-off, and the reason
//! is logged for a person; it never takes the process down.

use std::fmt::Display;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_lite::FutureExt;
use smol::{Executor, Timer};

/// The executor of a role and what runs on it.
#[derive(Clone)]
pub struct Tasks {
    executor: Arc<Executor<'static>>,
    started: Instant,
}

impl Default for Tasks {
    fn default() -> Self {
        Tasks { executor: Arc::new(Executor::new()), started: Instant::now() }
    }
}

impl Tasks {
    /// The executor itself, for what ends with its owner.
    pub fn executor(&self) -> &Arc<Executor<'static>> {
        &self.executor
    }

    /// Monotonic time since this role started: what sans-IO steps take as `now`.
    pub fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Runs a future to its end, unsupervised; a panic in it is logged.
    pub fn spawn(&self, name: &'static str, future: impl Future<Output = ()> + Send + 'static) {
        self.executor
            .spawn(async move {
                if let Err(reason) = caught(future).await {
                    log::error!("{name}: {reason}");
                }
            })
            .detach();
    }

    /// Runs what `make` makes, again and again while it fails; until it ends
    /// well.
    pub fn supervise<F, E>(&self, name: &'static str, make: impl Fn() -> F + Send + 'static)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Display + Send + 'static,
    {
        self.executor
            .spawn(async move {
                let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(60));
                loop {
                    let started = Instant::now();
                    let reason = match caught(make()).await {
                        Ok(Ok(())) => return,
                        Ok(Err(error)) => error.to_string(),
                        Err(reason) => reason,
                    };
                    if started.elapsed() > Duration::from_secs(60) {
                        backoff.reset();
                    }
                    let pause = backoff.next_pause();
                    log::error!("{name}: {reason}; again in {:.1} s", pause.as_secs_f64());
                    Timer::after(pause).await;
                }
            })
            .detach();
    }
}

/// A future's result, or what it panicked with.
async fn caught<T>(future: impl Future<Output = T>) -> Result<T, String> {
    AssertUnwindSafe(future).catch_unwind().await.map_err(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no reason given");
        format!("panicked: {text}")
    })
}

/// Exponential back-off with full jitter: each pause is random between nothing
/// and a bound that doubles, so that many who failed together do not come back
/// together.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    most: Duration,
    bound: Duration,
}

impl Backoff {
    /// Bounds from `first` to `most`.
    pub fn new(first: Duration, most: Duration) -> Backoff {
        Backoff { first, most, bound: first }
    }

    /// The next pause.
    pub fn next_pause(&mut self) -> Duration {
        let pause = self.bound.mul_f64(fastrand::f64());
        self.bound = (self.bound * 2).min(self.most);
        pause
    }

    /// After a success: short pauses again.
    pub fn reset(&mut self) {
        self.bound = self.first;
    }
}

/// Gives `None` if `future` takes longer than `limit`.
pub async fn within<T>(limit: Duration, future: impl Future<Output = T>) -> Option<T> {
    let timer = async {
        Timer::after(limit).await;
        None
    };
    async { Some(future.await) }.or(timer).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_that_panics_is_started_again() {
        let tasks = Tasks::default();
        let (count, counted) = async_channel::unbounded();
        tasks.supervise("test", move || {
            let count = count.clone();
            async move {
                count.send(()).await.map_err(|_| "closed")?;
                match count.len() {
                    1 => panic!("first time"),
                    2 => Err("second time"),
                    _ => Ok(()),
                }
            }
        });
        smol::block_on(tasks.executor().run(async {
            while counted.len() < 3 {
                Timer::after(Duration::from_millis(10)).await;
            }
        }));
    }

    #[test]
    fn pauses_grow_to_a_bound_and_start_over() {
        let (first, most) = (Duration::from_millis(500), Duration::from_secs(8));
        let mut backoff = Backoff::new(first, most);
        for _ in 0..100 {
            assert!(backoff.next_pause() <= most);
        }
        backoff.reset();
        assert!(backoff.next_pause() <= first);
    }
}
