//! The `couplet` program: signal handling and exit codes. The rest is in the library.

use std::process::ExitCode;

use clap::Parser;

use couplet::cli::{Cli, refuse_arguments, report_error};
use couplet::error::Error;
use couplet::logging::Logging;
use couplet::terminal::stdout_closed;

/// The stack size of each thread, in bytes. Only used pages take memory.
///
/// A query with thousands of terms becomes an equally deep tree, which recursive functions copy, compare and drop.
/// `sql_depth` limits the depth; a level takes up to a few kilobytes of stack in a debug build.
const STACK: usize = 256 << 20;

fn main() -> ExitCode {
    set_stack();
    return_memory();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse_arguments(&error),
    };
    let format = cli.messages().format();
    // The shell limits the stack of the main thread, so the program runs in a thread of its own.
    let main = std::thread::Builder::new().name("main".into()).stack_size(STACK).spawn(move || run(cli));
    let done = match main.map(std::thread::JoinHandle::join) {
        Ok(Ok(done)) => done,
        Ok(Err(panic)) => std::panic::resume_unwind(panic),
        Err(error) => Err(Error::Io { context: "starting a thread".into(), error }),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) if stdout_closed() => ExitCode::SUCCESS,
        Err(error) => {
            report_error(&error, format);
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(cli: Cli) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::Io { context: "starting the runtime".into(), error })?;
    let entered = runtime.enter();
    let logging = Logging::start(cli.messages());
    drop(entered);
    keep_signals_delivered();
    let done = runtime.block_on(cli.execute(Box::pin(stopped())));
    logging.end();
    // Do not wait for a batch in progress: it ends with the process.
    runtime.shutdown_background();
    done
}

/// Sets the stack size of all threads to [`STACK`] bytes, including those that libraries start.
fn set_stack() {
    const VARIABLE: &str = "RUST_MIN_STACK";
    if std::env::var_os(VARIABLE).is_none() {
        // SAFETY: no other thread has started, so none reads the environment concurrently.
        unsafe { std::env::set_var(VARIABLE, STACK.to_string()) };
    }
}

/// Makes glibc return freed memory to the system, twice a second.
///
/// By default, glibc keeps up to 64 MiB in each of eight arenas per core: a run of a million rows takes 425 to 480 MB,
/// and 275 to 295 MB with this function, in the same time. Returning each large block immediately would cost a page
/// fault for every 4 KiB of every activation, and make int16 a quarter slower.
fn return_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        const PERIOD: std::time::Duration = std::time::Duration::from_millis(500);
        let arenas = std::thread::available_parallelism().map_or(2, |cores| cores.get().max(2));
        let arenas = libc::c_int::try_from(arenas).unwrap_or(libc::c_int::MAX);
        // SAFETY: `mallopt` takes two integers and accesses no memory of ours; no other thread has started, so none
        // allocates concurrently. If it fails, the setting is unchanged.
        unsafe { libc::mallopt(libc::M_ARENA_MAX, arenas) };
        let give_back = || loop {
            std::thread::sleep(PERIOD);
            // SAFETY: `malloc_trim` locks the arenas and returns only free memory.
            unsafe { libc::malloc_trim(0) };
        };
        // If the thread cannot be started, memory is kept; that is not an error.
        drop(std::thread::Builder::new().name("malloc_trim".into()).spawn(give_back));
    }
}

/// Delivers signals while all threads of the runtime are busy; otherwise an idle runtime thread does it.
fn keep_signals_delivered() {
    std::thread::spawn(|| {
        if let Ok(listener) = tokio::runtime::Builder::new_current_thread().enable_all().build() {
            listener.block_on(std::future::pending::<()>());
        }
    });
}

/// Resolves on Ctrl-C, and on SIGTERM, which service managers send.
async fn stopped() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        match signal(SignalKind::terminate()) {
            Ok(mut terminate) => tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminate.recv() => {}
            },
            Err(_) => std::future::pending().await,
        }
    }
    #[cfg(not(unix))]
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}
