//! What one pod's worker knows of the pod: what the runtime said, what was tried, what is under
//! way. Plain data, the input of [`super::plan`] and [`super::status`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Time since the agent started, by the monotonic clock: a wrong or jumping wall clock must not
/// delay a restart.
pub type Time = Duration;

/// The first wait after a container's second exit, or after an image did not come.
const CRASH_FIRST: Duration = Duration::from_secs(10);
/// The longest such wait.
const CRASH_LONGEST: Duration = Duration::from_secs(300);
/// A container that ran this long is healthy again: its waits start over.
const HEALTHY: Duration = Duration::from_secs(600);
/// The first wait after a failed step of another kind.
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// The longest such wait.
const RETRY_LONGEST: Duration = Duration::from_secs(60);

/// A sandbox of this pod in the runtime.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sandbox {
    /// The runtime's identifier.
    pub id: String,
    /// Counts the pod's sandboxes.
    pub attempt: u32,
    /// Its first process and network are there.
    pub ready: bool,
    /// This agent stopped it, so its network resources are given back.
    pub stopped: bool,
    /// Its addresses, the primary one first; none with the host's network.
    pub ips: Vec<String>,
    /// Nanoseconds since 1970 by the runtime's clock.
    pub created_at: i64,
}

/// Where a container is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// Made, never started.
    #[default]
    Created,
    /// Running.
    Running,
    /// Ended.
    Exited,
    /// The runtime lost track of it.
    Unknown,
}

/// One run of a container.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Instance {
    /// The runtime's identifier.
    pub id: String,
    /// The sandbox it is in.
    pub sandbox_id: String,
    /// The container's name in the pod.
    pub name: String,
    /// Counts the runs of this container, from 0.
    pub restart: u32,
    /// Where it is in its life.
    pub state: State,
    /// The image that the pod asked for when this run was made; empty if not known.
    pub image: String,
    /// What the runtime resolved the image to.
    pub image_ref: String,
    /// Nanoseconds since 1970 by the runtime's clock; 0 is "not yet".
    pub started_at: i64,
    /// Likewise.
    pub finished_at: i64,
    /// Of an ended one.
    pub exit_code: i32,
    /// The runtime's word: `Completed`, `Error`, `OOMKilled`, `StartError`, ….
    pub reason: String,
    /// Why it did not start, or what it left in its termination message file.
    pub message: String,
}

/// What is known of an image that a container asks for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ImageState {
    /// The runtime was asked at least once.
    pub checked: bool,
    /// It is on this machine.
    pub present: bool,
    /// The runs (container, restart) that it was pulled for, for policy `Always`.
    pub pulled_for: BTreeSet<(String, u32)>,
}

/// The pod's folder on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Volumes {
    /// Something may be there from before.
    #[default]
    Unknown,
    /// Everything is there.
    Ready,
    /// Nothing is there.
    Gone,
}

/// What a step of work is about: at most one step a subject is under way.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Work {
    /// Making the volumes.
    Volumes,
    /// Removing the pod's folder.
    Discard,
    /// Looking for or pulling an image.
    Image(String),
    /// Making a sandbox.
    Sandbox,
    /// Making and starting the container of this name.
    Start(String),
    /// Stopping the container of this identifier, with this grace.
    Stop(String, Duration),
    /// Removing the container of this identifier.
    Remove(String),
    /// Stopping the sandbox of this identifier.
    StopSandbox(String),
    /// Stopping and removing the sandbox of this identifier.
    TearDown(String),
}

/// A step that failed and will be tried again.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Failure {
    /// How often in a row.
    pub count: u32,
    /// When to try again.
    pub retry_at: Time,
    /// Kubernetes' word for it, for example `CreateContainerError`.
    pub reason: &'static str,
    /// What went wrong.
    pub message: String,
}

/// The exits of one container.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Crash {
    /// How many since it last was healthy.
    pub count: u32,
    /// The present wait.
    pub delay: Duration,
    /// Not to be restarted before.
    pub restart_at: Time,
}

/// Everything known of one pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    /// All its sandboxes.
    pub sandboxes: Vec<Sandbox>,
    /// All runs of its containers.
    pub containers: Vec<Instance>,
    /// By the name that containers ask for.
    pub images: BTreeMap<String, ImageState>,
    /// Containers whose configuration cannot be made now, and why.
    pub config_errors: BTreeMap<String, String>,
    /// The pod's folder.
    pub volumes: Volumes,
    /// Exits by container name.
    pub crashes: BTreeMap<String, Crash>,
    /// Failed steps.
    pub failures: BTreeMap<Work, Failure>,
    /// Steps under way.
    pub busy: BTreeSet<Work>,
    /// Sandboxes made since the pod last was at rest for ten minutes, and when the last one was.
    pub made: (u32, Time),
    /// Runs whose exit is counted in `crashes`.
    pub(super) counted: BTreeSet<String>,
}

impl Observed {
    /// The sandbox that containers go into: the newest one that is ready.
    pub fn sandbox(&self) -> Option<&Sandbox> {
        self.sandboxes.iter().filter(|s| s.ready).max_by_key(|s| s.attempt)
    }

    /// The newest run of a container in any sandbox.
    pub fn latest(&self, name: &str) -> Option<&Instance> {
        self.containers.iter().filter(|c| c.name == name).max_by_key(|c| c.restart)
    }

    /// The newest run of a container in one sandbox.
    pub fn latest_in(&self, sandbox: &str, name: &str) -> Option<&Instance> {
        let here = self.containers.iter().filter(|c| c.name == name && c.sandbox_id == sandbox);
        here.max_by_key(|c| c.restart)
    }

    /// Counts exits that were not seen before. The first exit is restarted at once, the following
    /// ones wait 10 s, 20 s, … up to 300 s; a run of ten minutes starts over.
    pub fn count_exits(&mut self, now: Time) {
        let Observed { containers, counted, crashes, .. } = self;
        let mut exited: Vec<_> = containers.iter().filter(|c| c.state == State::Exited).collect();
        exited.sort_by_key(|c| c.restart);
        for run in &exited {
            if !counted.insert(run.id.clone()) {
                continue;
            }
            let crash = crashes.entry(run.name.clone()).or_default();
            let ran = run.finished_at.saturating_sub(run.started_at);
            let ran = Duration::from_nanos(u64::try_from(ran).unwrap_or(0));
            if run.started_at > 0 && ran >= HEALTHY {
                crash.count = 0;
            }
            crash.count = crash.count.saturating_add(1);
            crash.delay = match crash.count {
                0 | 1 => Duration::ZERO,
                count => doubled(CRASH_FIRST, count - 2, CRASH_LONGEST),
            };
            crash.restart_at = now.saturating_add(crash.delay);
        }
        counted.retain(|id| containers.iter().any(|c| &c.id == id));
    }

    /// Notes that a sandbox was made. From the third one on the next has to wait: a sandbox that
    /// dies again and again (an image of another processor, no memory) must not wear the card out.
    pub fn made_sandbox(&mut self, now: Time) {
        let (count, last) = self.made;
        let count = if now.saturating_sub(last) < HEALTHY { count.saturating_add(1) } else { 1 };
        self.made = (count, now);
        self.failures.remove(&Work::Sandbox);
        if let Some(times) = count.checked_sub(3) {
            let failure = Failure {
                count: times.saturating_add(1),
                retry_at: now.saturating_add(doubled(RETRY_FIRST, times, RETRY_LONGEST)),
                reason: "SandboxChanged",
                message: format!("the pod's sandbox ended; {count} were made, the next one waits"),
            };
            self.failures.insert(Work::Sandbox, failure);
        }
    }

    /// Notes that a step failed, and when it is to be tried again.
    pub fn failed(&mut self, work: Work, reason: &'static str, message: String, now: Time) {
        let (first, longest) = match &work {
            Work::Image(_) | Work::Start(_) => (CRASH_FIRST, CRASH_LONGEST),
            _ => (RETRY_FIRST, RETRY_LONGEST),
        };
        let failure = self.failures.entry(work).or_default();
        let delay = doubled(first, failure.count, longest);
        failure.count = failure.count.saturating_add(1);
        failure.retry_at = now.saturating_add(delay);
        failure.reason = reason;
        failure.message = message;
    }
}

fn doubled(first: Duration, times: u32, longest: Duration) -> Duration {
    let factor = 1u32.checked_shl(times).unwrap_or(u32::MAX);
    first.saturating_mul(factor).min(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_between_crashes_double_and_start_over_after_a_healthy_run() {
        let mut observed = Observed::default();
        let mut waits = Vec::new();
        let second = 1_000_000_000;
        for (restart, ran) in [1, 1, 1, 1, 1, 1, 1, 1, 700, 1].into_iter().enumerate() {
            observed.containers = vec![Instance {
                id: restart.to_string(),
                name: "c".into(),
                restart: restart as u32,
                state: State::Exited,
                started_at: second,
                finished_at: second + ran * second,
                ..Default::default()
            }];
            observed.count_exits(Duration::from_secs(1000));
            observed.count_exits(Duration::from_secs(2000));
            let crash = observed.crashes["c"];
            assert_eq!(crash.restart_at, Duration::from_secs(1000) + crash.delay);
            waits.push(crash.delay.as_secs());
        }
        assert_eq!(waits, [0, 10, 20, 40, 80, 160, 300, 300, 0, 10]);
        assert_eq!(observed.counted.len(), 1);
    }

    #[test]
    fn sandboxes_that_keep_dying_are_made_ever_more_slowly() {
        let mut observed = Observed::default();
        let mut now = Duration::from_secs(1);
        let mut waits = Vec::new();
        for _ in 0..10 {
            observed.made_sandbox(now);
            let next = observed.failures.get(&Work::Sandbox).map_or(now, |f| f.retry_at);
            waits.push((next - now).as_secs());
            now = next;
        }
        assert_eq!(waits, [0, 0, 1, 2, 4, 8, 16, 32, 60, 60]);
        observed.made_sandbox(now + HEALTHY);
        assert!(!observed.failures.contains_key(&Work::Sandbox));
    }

    #[test]
    fn failed_steps_wait_longer_each_time() {
        let mut observed = Observed::default();
        for wait in [1, 2, 4, 8, 16, 32, 60, 60] {
            observed.failed(Work::Sandbox, "x", "y".into(), Duration::from_secs(5));
            assert_eq!(observed.failures[&Work::Sandbox].retry_at.as_secs(), 5 + wait);
        }
        for _ in 0..100 {
            observed.failed(Work::Image("i".into()), "x", "y".into(), Duration::ZERO);
        }
        assert_eq!(observed.failures[&Work::Image("i".into())].retry_at, CRASH_LONGEST);
    }
}
