//! `couplet scheduler` and `couplet executor`.

use std::future::Future;
use std::path::PathBuf;

use clap::Args;

use super::at_least;
use crate::cluster::{Address, SCHEDULER_PORT};
use crate::error::Error;
use crate::scorer::DeviceSetting;

/// The port on which an executor gives out results where no other is named.
const EXECUTOR_PORT: u16 = SCHEDULER_PORT + 1;

#[derive(Debug, Args)]
pub(super) struct Scheduler {
    /// The address to listen on, for clients and executors
    #[arg(long, value_name = "HOST", default_value = "127.0.0.1")]
    bind: String,
    /// The port to listen on
    #[arg(long, default_value_t = SCHEDULER_PORT)]
    port: u16,
    /// After how many seconds without a word an executor is taken for dead, and its tasks are handed out again
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = at_least(10))]
    executor_timeout: u64,
}

#[derive(Debug, Args)]
pub(super) struct Executor {
    /// Where the scheduler is
    #[arg(long, value_name = "df://HOST:PORT", default_value = "df://127.0.0.1:50050")]
    scheduler: Address,
    /// The address to give out results on
    #[arg(long, value_name = "HOST", default_value = "127.0.0.1")]
    bind: String,
    /// The port to give out results on
    #[arg(long, default_value_t = EXECUTOR_PORT)]
    port: u16,
    /// The host by which others reach this one, if not by the address that the scheduler sees
    #[arg(long, value_name = "HOST")]
    advertise: Option<String>,
    /// The port for /healthz, /readyz and /metrics; 0 for none
    #[arg(long, value_name = "PORT", default_value_t = EXECUTOR_PORT + 1)]
    http_port: u16,
    /// What it is called in records and errors; the host's name and some digits if not given
    #[arg(long)]
    name: Option<String>,
    /// Tasks at once: they share the threads, and one is read while another is scored
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..))]
    slots: u16,
    /// Inference threads; one a core if not given
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
    /// Where the encoder runs: auto, cpu, cuda:N or metal
    #[arg(long, default_value = "auto")]
    device: DeviceSetting,
    /// The memory of joins and sorts of queries, such as 4GiB
    #[arg(long, value_name = "SIZE", default_value = "2GiB", value_parser = bytes)]
    memory: u64,
    /// Where results are kept until they are fetched, in a folder that goes with the executor; the system's folder for
    /// temporary files if not given
    #[arg(long, value_name = "DIR")]
    work: Option<PathBuf>,
}

fn bytes(text: &str) -> Result<u64, String> {
    crate::config::bytes(text).ok_or_else(|| "expected a size such as 512MiB or 4GiB".into())
}

impl Scheduler {
    pub(super) async fn execute(self, stop: impl Future<Output = ()>) -> Result<(), Error> {
        let options = crate::cluster::SchedulerOptions {
            bind: self.bind,
            port: self.port,
            executor_timeout: self.executor_timeout,
        };
        tokio::select! {
            biased;
            () = stop => Ok(()),
            ended = crate::cluster::schedule(options) => Ok(ended?),
        }
    }
}

impl Executor {
    pub(super) async fn execute(self, stop: impl Future<Output = ()>) -> Result<(), Error> {
        let name = self.name.unwrap_or_else(|| {
            let digits = uuid::Uuid::new_v4().simple().to_string();
            format!("{}-{}", crate::lock::host(), &digits[..6])
        });
        let options = crate::cluster::ExecutorOptions {
            scheduler: self.scheduler,
            bind: self.bind,
            advertise: self.advertise,
            port: self.port,
            http_port: (self.http_port != 0).then_some(self.http_port),
            name,
            slots: self.slots.into(),
            threads: self.threads.map(usize::from),
            device: self.device,
            memory: self.memory,
            work: self.work.unwrap_or_else(std::env::temp_dir),
        };
        Ok(crate::cluster::execute(options, stop).await?)
    }
}
