//! The `couplet` program: signals and exit codes; everything else is in the library.

use std::process::ExitCode;

use clap::Parser;

use couplet::cli::{Cli, refuse_arguments, report_error};
use couplet::error::Error;
use couplet::logging::Logging;
use couplet::terminal::nobody_reads;

/// Bytes of each thread's stack, of which only what is used takes memory.
///
/// A query of thousands of terms becomes a tree as deep, which is copied, compared and dropped by functions that call
/// themselves. `sql_depth` limits the depth; a level takes up to some kilobytes in a debug build.
const STACK: usize = 256 << 20;

fn main() -> ExitCode {
    set_stack();
    return_memory();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse_arguments(&error),
    };
    let format = cli.messages().format();
    // The stack of the main thread is as the shell limits it.
    let main = std::thread::Builder::new().name("main".into()).stack_size(STACK).spawn(move || run(cli));
    let done = match main.map(std::thread::JoinHandle::join) {
        Ok(Ok(done)) => done,
        Ok(Err(panic)) => std::panic::resume_unwind(panic),
        Err(error) => Err(Error::Io { context: "starting a thread".into(), error }),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) if nobody_reads() => ExitCode::SUCCESS,
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
    hear_signals();
    let done = runtime.block_on(cli.execute(stopped()));
    logging.end();
    // A batch that is under way ends with the process, not before it.
    runtime.shutdown_background();
    done
}

/// Gives all threads a stack of [`STACK`] bytes, those too that libraries start.
fn set_stack() {
    const VARIABLE: &str = "RUST_MIN_STACK";
    if std::env::var_os(VARIABLE).is_none() {
        // SAFETY: no other thread has started, so none reads the environment meanwhile.
        unsafe { std::env::set_var(VARIABLE, STACK.to_string()) };
    }
}

/// Makes glibc give back to the system what is freed, twice a second.
///
/// Left alone it keeps up to 64 MiB in each of eight arenas a core: a run of a million rows takes 425 to 480 MB then, and
/// 275 to 295 MB with this, in the same time. (To give each large block back at once costs a page fault for every 4 KiB
/// of every activation: int16 is a quarter slower so.)
fn return_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        const PERIOD: std::time::Duration = std::time::Duration::from_millis(500);
        let arenas = std::thread::available_parallelism().map_or(2, |cores| cores.get().max(2));
        let arenas = libc::c_int::try_from(arenas).unwrap_or(libc::c_int::MAX);
        // SAFETY: `mallopt` takes two integers and touches nothing of ours; no other thread has started, so none
        // allocates meanwhile. What it refuses, it leaves as it was.
        unsafe { libc::mallopt(libc::M_ARENA_MAX, arenas) };
        let give_back = || loop {
            std::thread::sleep(PERIOD);
            // SAFETY: `malloc_trim` takes the locks of the arenas, and gives back only what is free.
            unsafe { libc::malloc_trim(0) };
        };
        // Where no thread can be had, there are other worries than memory.
        drop(std::thread::Builder::new().name("malloc_trim".into()).spawn(give_back));
    }
}

/// Passes signals on while all threads of the runtime are busy, where otherwise one that is idle does.
fn hear_signals() {
    std::thread::spawn(|| {
        if let Ok(listener) = tokio::runtime::Builder::new_current_thread().enable_all().build() {
            listener.block_on(std::future::pending::<()>());
        }
    });
}

/// Resolves on Ctrl-C and on the signal by which service managers end a program.
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
