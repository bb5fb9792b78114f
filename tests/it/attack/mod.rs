//! Compares disturbed runs with undisturbed ones. Disturbances: kills at random moments and at every call that changes
//! something, stops beyond a lease, concurrent runs, clocks that jump, failing requests, and servers that die. They
//! cover all sinks and modes, on local disk and in a bucket of SeaweedFS. After each disturbance the pipeline runs
//! again, as a scheduler would run it, and the published tables are compared row by row with those of undisturbed runs.
//!
//! ```text
//! COUPLET_ATTACK=1000 cargo test … attack -- --nocapture                   until 1,000 processes are killed
//! COUPLET_ATTACK_SEED=7 …                                                  other cases
//! COUPLET_ATTACK_PROGRAM=/usr/bin/couplet …                                another build
//! COUPLET_ATTACK_CASE="local / kill at rename / delta append / 4711" …     one case alone
//! ```

mod case;
mod disturb;
mod history;
mod process;
mod random;
mod sinks;
mod site;

use std::collections::BTreeMap;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, RwLock};
use std::time::Instant;

use case::{Case, Disturbance};
use disturb::{Count, Trial, World};
use history::History;

use crate::seaweed::Seaweed;
use crate::support::skip;

/// The default seed.
const SEED: u64 = 18;

/// The number of cases per disturbance in the short run.
const SHORT_ROUNDS: usize = 1;

/// Counts by disturbance and by sink.
#[derive(Default)]
struct Tally {
    cells: BTreeMap<(String, &'static str), Count>,
    cases: usize,
    kills: usize,
    failures: Vec<String>,
}

impl Tally {
    fn add(&mut self, case: &Case, count: Count, failure: Option<String>) {
        let cell = self.cells.entry((case.row(), case.sink.name)).or_default();
        cell.disturbed += count.disturbed;
        cell.kills += count.kills;
        self.cases += 1;
        self.kills += count.kills;
        self.failures.extend(failure);
    }

    /// Formats the table of counts: disturbances by table and mode, with those of quarantine sinks in brackets.
    fn to_text(&self) -> String {
        let plain = |sink: &'static str| sink.trim_end_matches(", quarantine");
        let mut columns: Vec<&str> = self.cells.keys().map(|(_, sink)| plain(sink)).collect();
        columns.sort_unstable();
        columns.dedup();
        let mut rows: Vec<&String> = self.cells.keys().map(|(row, _)| row).collect();
        rows.dedup();
        let mut text =
            format!("| disturbance | kills | {} |\n|---|{}\n", columns.join(" | "), "---|".repeat(columns.len() + 1));
        for row in rows {
            let of_row = || self.cells.iter().filter(|((name, _), _)| name == row);
            let cells = columns.iter().map(|column| {
                let of = |quarantine: bool| -> usize {
                    let of = of_row().filter(|((_, sink), _)| {
                        plain(sink) == *column && sink.ends_with(", quarantine") == quarantine
                    });
                    of.map(|(_, count)| count.disturbed).sum()
                };
                format!("{} ({})", of(false), of(true))
            });
            let kills: usize = of_row().map(|(_, count)| count.kills).sum();
            text.push_str(&format!("| {row} | {kills} | {} |\n", cells.collect::<Vec<_>>().join(" | ")));
        }
        let disturbed: usize = self.cells.values().map(|count| count.disturbed).sum();
        text + &format!(
            "{} cases, {disturbed} disturbances, {} processes killed, {} failures\n",
            self.cases,
            self.kills,
            self.failures.len()
        )
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Starts the server that this test may kill, or returns why there is none.
fn server() -> Result<&'static Seaweed, String> {
    static SERVER: OnceLock<Result<Seaweed, String>> = OnceLock::new();
    let server = SERVER.get_or_init(|| {
        let server = Seaweed::start()?;
        server.bucket(site::BUCKET);
        Ok(server)
    });
    server.as_ref().map_err(Clone::clone)
}

/// Runs a case. Returns the number of disturbances and what went wrong.
fn run(world: &World, case: Case) -> (Count, Option<String>) {
    let mut kept: Option<PathBuf> = None;
    let tried = catch_unwind(AssertUnwindSafe(|| {
        let mut trial = Trial::new(world, case);
        let outcome = trial.run();
        let log = trial.log.join("\n    ");
        let count = trial.count;
        if outcome.is_err() {
            kept = Some(trial.site.keep());
        }
        (count, outcome.err().map(|problem| format!("{problem}\n    {log}")))
    }));
    let (count, problem) = tried.unwrap_or_else(|panic| {
        let message = panic.downcast_ref::<String>().cloned();
        let message = message.or_else(|| panic.downcast_ref::<&str>().map(|message| (*message).to_owned()));
        (Count::default(), Some(message.unwrap_or_else(|| "a panic".into())))
    });
    let failure = problem.map(|problem| {
        let kept = kept.map(|folder| format!("\n  its folder: {}", folder.display())).unwrap_or_default();
        format!(
            "{}\n  {problem}{kept}\n  again: COUPLET_ATTACK_CASE={:?} cargo test --features cluster,otel --test it -- \
             attack --nocapture",
            case.name(),
            case.name()
        )
    });
    (count, failure)
}

#[test]
fn disturbed_runs_publish_the_same_rows_as_undisturbed_ones() {
    let test = "disturbed_runs_publish_the_same_rows_as_undisturbed_ones";
    if let Err(why) = process::shim() {
        return skip(test, &format!("no C compiler ({why})"));
    }
    let server = server().inspect_err(|why| skip(&format!("{test} in a bucket"), why)).ok();
    let world = World { history: History::default(), server, server_is_up: RwLock::new(()) };
    let seed = variable("COUPLET_ATTACK_SEED").map_or(SEED, |seed| seed.parse().unwrap());
    let kills: Option<usize> = variable("COUPLET_ATTACK").map(|kills| kills.parse().unwrap());
    let one =
        variable("COUPLET_ATTACK_CASE").map(|name| Case::of(&name).unwrap_or_else(|| panic!("{name} is no case")));
    let (next, tally, began) = (AtomicUsize::new(0), Mutex::new(Tally::default()), Instant::now());
    let say = |text: &str| drop(writeln!(std::io::stderr(), "{text}"));
    let work = || {
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            let enough = match (one, kills) {
                (Some(_), _) => n > 0,
                (None, Some(kills)) => tally.lock().unwrap().kills >= kills,
                (None, None) => n >= SHORT_ROUNDS * Case::disturbances(),
            };
            if enough {
                return;
            }
            let case = one.unwrap_or_else(|| Case::nth(seed, n, kills.is_none()));
            if !case.is_local && world.server.is_none() {
                continue;
            }
            let (count, failure) = if case.disturbance == Disturbance::Server {
                let _alone = world.server_is_up.write();
                run(&world, case)
            } else {
                let _up = (!case.is_local).then(|| world.server_is_up.read());
                run(&world, case)
            };
            if let Some(failure) = &failure {
                say(&format!("FAILED with seed {seed}, case {n}: {failure}"));
            }
            let mut tally = tally.lock().unwrap();
            tally.add(&case, count, failure);
            if kills.is_some() && tally.cases.is_multiple_of(50) {
                say(&format!("after {:.0} s:\n{}", began.elapsed().as_secs_f64(), tally.to_text()));
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(2, usize::from).min(8);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    let tally = tally.into_inner().unwrap();
    let text = format!("seed {seed}, {:.0} s\n{}", began.elapsed().as_secs_f64(), tally.to_text());
    println!("{text}");
    assert!(tally.failures.is_empty(), "{}", tally.failures.join("\n\n"));
}
