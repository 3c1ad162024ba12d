//! The state of one container in its worker, and the rules for restarting it.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Container;
use tokio::{task::JoinHandle, time::Instant};

use crate::container::{Exit, runtime::Running};

/// A container that ran this long starts its back-off anew.
const FORGET_AFTER: Duration = Duration::from_secs(600);
const LONGEST_BACK_OFF: Duration = Duration::from_secs(300);

/// Which list of the pod a container comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Runs to completion before the next.
    Init,
    /// An init container with `restartPolicy: Always`: started in order, then stays.
    Sidecar,
    Main,
}

/// One container.
#[derive(Debug)]
pub(crate) struct ContainerState {
    pub(crate) spec: Container,
    pub(crate) role: Role,
    /// Number of the current run, or of the next one while waiting for the first.
    pub(crate) attempt: u32,
    pub(crate) state: State,
    /// The run before the current one.
    pub(crate) last: Option<Ended>,
    pub(crate) ready: bool,
    pub(crate) started: bool,
    /// Restarts since the back-off was last forgotten.
    pub(crate) restarts: u32,
    /// Failed attempts to find the image.
    pub(crate) pulls: u32,
    pub(crate) image_id: String,
    pub(crate) probes: Option<Task>,
    /// The container is being stopped by us.
    pub(crate) stopping: bool,
}

/// A task that ends with its handle.
#[derive(Debug)]
pub(crate) struct Task(pub(crate) JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Where a container is.
#[derive(Debug)]
pub(crate) enum State {
    Waiting {
        reason: &'static str,
        message: Option<String>,
        retry_at: Option<Instant>,
    },
    /// A task is starting it.
    Starting,
    Running(Running),
    /// Ended, and not (or not yet) to be restarted.
    Ended(Ended),
}

/// How a run ended.
#[derive(Clone, Debug)]
pub(crate) struct Ended {
    pub(crate) attempt: u32,
    pub(crate) exit: Exit,
    pub(crate) message: Option<String>,
}

impl ContainerState {
    pub(crate) fn new(spec: Container, role: Role) -> Self {
        Self {
            spec,
            role,
            attempt: 0,
            state: State::Waiting {
                reason: "ContainerCreating",
                message: None,
                retry_at: None,
            },
            last: None,
            ready: false,
            started: false,
            restarts: 0,
            pulls: 0,
            image_id: String::new(),
            probes: None,
            stopping: false,
        }
    }

    /// Whether it counts for the pod's readiness.
    pub(crate) fn serves(&self) -> bool {
        self.role != Role::Init
    }

    pub(crate) fn running(&self) -> Option<&Running> {
        match &self.state {
            State::Running(running) => Some(running),
            _ => None,
        }
    }

    pub(crate) fn ended(&self) -> Option<&Ended> {
        match &self.state {
            State::Ended(ended) => Some(ended),
            _ => None,
        }
    }

    /// Whether an init container has done its work.
    pub(crate) fn done(&self) -> bool {
        match self.role {
            Role::Init => self.ended().is_some_and(|ended| ended.exit.code == 0),
            Role::Sidecar => self.started,
            Role::Main => false,
        }
    }

    /// Whether a run that ended this way is followed by another one.
    pub(crate) fn restarts_after(&self, exit: &Exit, policy: &str) -> bool {
        let failed = exit.code != 0 || exit.start_error.is_some();
        match self.role {
            Role::Sidecar => true,
            Role::Init => failed && policy != "Never",
            Role::Main => match policy {
                "Never" => false,
                "OnFailure" => failed,
                _ => true,
            },
        }
    }

    /// The wait before the next restart; counts it.
    pub(crate) fn next_back_off(&mut self, exit: &Exit) -> Duration {
        let ran = exit.started_at.map_or(Duration::ZERO, |started_at| {
            exit.finished_at
                .duration_since(started_at)
                .try_into()
                .unwrap_or_default()
        });
        if ran >= FORGET_AFTER {
            self.restarts = 0;
        }
        let wait = back_off(self.restarts);
        self.restarts += 1;
        wait
    }
}

/// The first restart is at once, the n-th after it waits 10·2^(n-1) seconds, five minutes at most.
pub(crate) fn back_off(restarts: u32) -> Duration {
    match restarts {
        0 => Duration::ZERO,
        n => Duration::from_secs(10)
            .saturating_mul(1 << (n - 1).min(10))
            .min(LONGEST_BACK_OFF),
    }
}

/// `80 s` → `1m20s`, as Kubernetes prints durations.
pub(crate) fn print_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if seconds < 60 {
        format!("{seconds}s")
    } else {
        format!("{}m{}s", seconds / 60, seconds % 60)
    }
}

/// The reason of a terminated state.
pub(crate) fn reason(exit: &Exit) -> &'static str {
    match (&exit.start_error, exit.code) {
        (Some(_), 128) => "StartError",
        (Some(_), _) => "ContainerStatusUnknown",
        (None, 0) => "Completed",
        (None, _) => "Error",
    }
}

/// An exit that nobody recorded.
pub(crate) fn unknown_exit(started_at: Option<Timestamp>, message: &str) -> Exit {
    Exit {
        code: 137,
        signal: Some(9),
        start_error: Some(message.to_owned()),
        started_at,
        finished_at: Timestamp::now(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn back_off_doubles_from_ten_seconds_to_five_minutes() {
        let waits: Vec<_> = (0..8).map(|n| back_off(n).as_secs()).collect();
        assert_eq!(waits, [0, 10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(print_duration(back_off(4)), "1m20s");
        assert_eq!(print_duration(back_off(7)), "5m0s");
    }

    #[test]
    fn ten_minutes_of_running_forget_the_back_off() {
        let mut container = ContainerState::new(Container::default(), Role::Main);
        let finished_at = Timestamp::now();
        let ran = |seconds: i64| Exit {
            code: 1,
            signal: None,
            start_error: None,
            started_at: Some(finished_at - jiff::SignedDuration::from_secs(seconds)),
            finished_at,
        };
        assert_eq!(container.next_back_off(&ran(1)), Duration::ZERO);
        assert_eq!(container.next_back_off(&ran(1)), Duration::from_secs(10));
        assert_eq!(container.next_back_off(&ran(601)), Duration::ZERO);
    }
}
