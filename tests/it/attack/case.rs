//! An attack case: place, sink, disturbance and random seed.

use std::time::Duration;

use super::process::{FILE_CALLS, REQUESTS};
use super::random::Random;
use super::sinks::{SHORT, SINKS, Sink};
use crate::proxy::Fault;

/// A disturbance of a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Disturbance {
    /// SIGKILL at random moments.
    KillAtRandom,
    /// SIGKILL at system calls or requests of one kind.
    KillAt(&'static str),
    /// SIGSTOP at a call, a run with newer data meanwhile, and SIGCONT.
    Stop,
    /// This many concurrent runs of one pipeline.
    Together(usize),
    /// Two concurrent pipelines on one sink.
    Pipelines,
    /// A clock that jumps back and forth.
    Clock,
    /// Requests that fail.
    Requests(&'static str, Fault),
    /// The server is killed and restarted.
    Server,
}

/// The ways in which requests fail.
const FAULTS: [(&str, Fault); 10] = [
    ("500", Fault::Status(500)),
    ("503", Fault::Status(503)),
    ("429", Fault::Status(429)),
    ("error in the body", Fault::ErrorBody),
    ("reset", Fault::Reset),
    ("answer dropped", Fault::DropAnswer),
    ("done but 500", Fault::DoneButStatus(500)),
    ("body truncated", Fault::TruncatedBody),
    ("slow", Fault::SlowBody(Duration::from_millis(1))),
    ("stalled", Fault::Stall(Duration::from_secs(2))),
];

impl Disturbance {
    pub fn name(self) -> String {
        match self {
            Self::KillAtRandom => "kill at random".into(),
            Self::KillAt(call) => format!("kill at {call}"),
            Self::Stop => "stop".into(),
            Self::Together(runs) => format!("{runs} runs at once"),
            Self::Pipelines => "2 pipelines at once".into(),
            Self::Clock => "clock".into(),
            Self::Requests(name, _) => format!("requests: {name}"),
            Self::Server => "kill of the server".into(),
        }
    }

    fn all(is_local: bool) -> Vec<Self> {
        let calls = if is_local { &FILE_CALLS[..] } else { &REQUESTS[..] };
        let mut all =
            vec![Self::KillAtRandom, Self::Stop, Self::Together(2), Self::Together(3), Self::Pipelines, Self::Clock];
        all.extend(calls.iter().map(|call| Self::KillAt(call)));
        if !is_local {
            all.extend(FAULTS.iter().map(|(name, fault)| Self::Requests(name, *fault)));
            all.push(Self::Server);
        }
        all
    }
}

/// A case; its name is enough to run it again.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    pub is_local: bool,
    pub sink: Sink,
    pub disturbance: Disturbance,
    pub seed: u64,
}

impl Case {
    /// The `n`-th case of a seed: cycles through all disturbances, each time with the next sink.
    pub fn nth(seed: u64, n: usize, is_short: bool) -> Self {
        let all: Vec<(bool, Disturbance)> = [true, false]
            .into_iter()
            .flat_map(|is_local| Disturbance::all(is_local).into_iter().map(move |disturbance| (is_local, disturbance)))
            .collect();
        let which = n % all.len();
        let (is_local, disturbance) = all[which];
        let sinks = if is_short { &SINKS[..SHORT] } else { &SINKS[..] };
        let sink = sinks[(n / all.len() + which + seed as usize) % sinks.len()];
        Self { is_local, sink, disturbance, seed: Random::new(seed ^ ((n as u64) << 32)).number() % 1_000_000 }
    }

    /// The number of disturbances.
    pub fn disturbances() -> usize {
        Disturbance::all(true).len() + Disturbance::all(false).len()
    }

    /// Parses the name that [`Case::name`] returns.
    pub fn of(name: &str) -> Option<Self> {
        let parts: Vec<&str> = name.split(" / ").collect();
        let [place, disturbance, sink, seed] = parts[..] else { return None };
        let is_local = place == "local";
        let disturbance = Disturbance::all(is_local).into_iter().find(|one| one.name() == disturbance)?;
        Some(Self { is_local, sink: Sink::of(sink)?, disturbance, seed: seed.parse().ok()? })
    }

    pub fn name(&self) -> String {
        format!("{} / {} / {}", self.row(), self.sink, self.seed)
    }

    /// The key under which the case is counted.
    pub fn row(&self) -> String {
        let place = if self.is_local { "local" } else { "bucket" };
        format!("{place} / {}", self.disturbance.name())
    }
}
