//! `couplet scheduler` and `couplet executor`.

use std::future::Future;
use std::path::PathBuf;

use clap::Args;
use couplet_cluster::{Address, SCHEDULER_PORT};
use couplet_encoder::scorer::DeviceSetting;

use super::at_least;
use crate::error::Error;

/// The default port on which an executor serves results.
const EXECUTOR_PORT: u16 = SCHEDULER_PORT + 1;

#[derive(Debug, Args)]
pub(super) struct Scheduler {
    /// The address to listen on, for clients and executors
    #[arg(long, value_name = "HOST", default_value = "127.0.0.1")]
    bind: String,
    /// The port to listen on
    #[arg(long, default_value_t = SCHEDULER_PORT)]
    port: u16,
    /// Seconds without a heartbeat after which an executor counts as lost and its tasks are reassigned
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = at_least(10))]
    executor_timeout: u64,
}

#[derive(Debug, Args)]
pub(super) struct Executor {
    /// The address of the scheduler
    #[arg(long, value_name = "df://HOST:PORT", default_value = "df://127.0.0.1:50050")]
    scheduler: Address,
    /// The address to serve results on
    #[arg(long, value_name = "HOST", default_value = "127.0.0.1")]
    bind: String,
    /// The port to serve results on
    #[arg(long, default_value_t = EXECUTOR_PORT)]
    port: u16,
    /// The host name under which others reach this executor (default: the address that the scheduler sees)
    #[arg(long, value_name = "HOST")]
    advertise: Option<String>,
    /// The port for /healthz, /readyz and /metrics; 0 for none
    #[arg(long, value_name = "PORT", default_value_t = EXECUTOR_PORT + 1)]
    http_port: u16,
    /// The name of the executor in records and errors (default: the host name and random digits)
    #[arg(long)]
    name: Option<String>,
    /// The number of concurrent tasks; they share the threads, and one reads while another scores
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..))]
    slots: u16,
    /// The number of inference threads (default: one per core)
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
    /// The device that runs the encoder: auto, cpu, cuda:N or metal
    #[arg(long, default_value = "auto")]
    device: DeviceSetting,
    /// The memory for joins and sorts of queries, such as 4GiB
    #[arg(long, value_name = "SIZE", default_value = "2GiB", value_parser = bytes)]
    memory: u64,
    /// The folder for results until they are fetched; they are in a subfolder that is deleted when the executor ends
    /// (default: the system's temporary folder)
    #[arg(long, value_name = "DIR")]
    work: Option<PathBuf>,
}

fn bytes(text: &str) -> Result<u64, String> {
    crate::config::bytes(text).ok_or_else(|| "expected a size such as 512MiB or 4GiB".into())
}

impl Scheduler {
    pub(super) async fn execute(self, stop: impl Future<Output = ()>) -> Result<(), Error> {
        let options = couplet_cluster::SchedulerOptions {
            bind: self.bind,
            port: self.port,
            executor_timeout: self.executor_timeout,
        };
        tokio::select! {
            biased;
            () = stop => Ok(()),
            ended = couplet_cluster::schedule(options) => Ok(ended?),
        }
    }
}

impl Executor {
    pub(super) async fn execute(self, stop: impl Future<Output = ()>) -> Result<(), Error> {
        let name = self.name.unwrap_or_else(|| {
            let digits = uuid::Uuid::new_v4().simple().to_string();
            format!("{}-{}", couplet_storage::lock::host(), &digits[..6])
        });
        let options = couplet_cluster::ExecutorOptions {
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
        Ok(couplet_cluster::execute(options, stop).await?)
    }
}
