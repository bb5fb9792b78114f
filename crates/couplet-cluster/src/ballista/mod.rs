//! The cluster over Ballista: client, scheduler and executors.

mod client;
mod codec;
mod contract;
mod delta;
mod executor;
mod function;
mod listed;
mod lists;
mod outcomes;
mod scheduler;
mod session;
mod stores;
mod tasks;

use super::{Address, ClusterError, ExecutorInfo, ExecutorOptions, SchedulerOptions, Scored, Work};

pub use client::Client;
pub use contract::Contract;
pub use executor::execute;
pub use lists::list_executors;
pub use scheduler::schedule;
pub use session::{cancel, session_of, starved};

/// The separator between the name of an executor and the suffix that makes each of its starts unique.
const INSTANCE: char = '~';
