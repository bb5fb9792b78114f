//! Disturbs a run, runs the pipeline again as a scheduler would, and compares the tables that readers see with those of
//! undisturbed runs.

use std::sync::{Arc, RwLock};
use std::time::Duration;

use rustix::process::Signal;

use super::case::{Case, Disturbance};
use super::history::{History, Past, Run};
use super::process::{Ended, Running, Shim};
use super::random::Random;
use super::site::{Place, Site, Tables};
use crate::proxy::{Fault, Kind, Proxy, Rule};
use crate::seaweed::Seaweed;

/// State shared by all cases.
pub struct World {
    pub history: History,
    /// `None` if no server is available.
    pub server: Option<&'static Seaweed>,
    /// Held for writing by the case that kills the server.
    pub server_is_up: RwLock<()>,
}

/// The number of disturbances and of killed processes in a case.
#[derive(Debug, Clone, Copy, Default)]
pub struct Count {
    pub disturbed: usize,
    pub kills: usize,
}

/// The time after which an undisturbed run counts as waiting for another run.
const WAIT_LIMIT: Duration = Duration::from_secs(15);

type Outcome = Result<(), String>;

/// A case in progress.
pub struct Trial<'a> {
    world: &'a World,
    case: Case,
    place: Place,
    random: Random,
    /// Successful runs before the disturbance.
    before: Vec<Run>,
    pub site: Site,
    runs: usize,
    /// A log of the case for the failure message.
    pub log: Vec<String>,
    pub count: Count,
}

impl<'a> Trial<'a> {
    pub fn new(world: &'a World, case: Case) -> Self {
        let mut random = Random::new(case.seed);
        let place = if case.is_local { Place::Local } else { Place::Bucket(world.server.unwrap()) };
        // Also starts without any run, so that a disturbed run creates the store and the table.
        let before = if random.chance(0.3) { Vec::new() } else { vec![Run::First(1)] };
        let site = world.history.after(place, case.sink, &before).site.copy();
        let log = vec![format!("before: {before:?}")];
        Self { world, case, place, random, before, site, runs: 0, log, count: Count::default() }
    }

    /// Runs the case. The error describes what went wrong.
    pub fn run(&mut self) -> Outcome {
        match self.case.disturbance {
            Disturbance::KillAtRandom | Disturbance::KillAt(_) => self.kill(),
            Disturbance::Stop => self.stop(),
            Disturbance::Together(runs) => self.together(runs),
            Disturbance::Pipelines => self.pipelines(),
            Disturbance::Clock => self.clock(),
            Disturbance::Requests(_, fault) => self.requests(fault),
            Disturbance::Server => self.server(),
        }
    }

    /// The state after the earlier undisturbed runs and these ones.
    fn after(&self, runs: &[Run]) -> Arc<Past> {
        self.world.history.after(self.place, self.case.sink, &[&self.before[..], runs].concat())
    }

    fn start(&mut self, pipeline: &str, more: &[&str], shim: &Shim, endpoint: Option<&str>) -> Running {
        self.runs += 1;
        let command = self.site.couplet(&[&["run", pipeline], more].concat(), endpoint);
        Running::start(command, shim, &self.site.path("messages"), &format!("run-{}", self.runs))
    }

    fn note(&mut self, what: &str, ended: &Ended) {
        let printed: Vec<&str> = ended.stderr.lines().filter(|line| !line.is_empty()).collect();
        let printed = printed[printed.len().saturating_sub(3)..].join(" | ");
        self.log.push(format!("{what}: {} at {}: {printed}", ended.status, ended.disturbed_at()));
    }

    /// Checks that readers see one of these states.
    fn expect(&mut self, when: &str, allowed: &[(&str, &Tables)]) -> Outcome {
        let now = self.site.tables()?;
        if let Some((name, _)) = allowed.iter().find(|(_, tables)| **tables == now) {
            self.log.push(format!("{when}: readers see {name}"));
            return Ok(());
        }
        let (name, nearest) = allowed.last().unwrap();
        Err(format!(
            "{when}: readers see neither of {:?}; {}",
            allowed.iter().map(|(name, _)| name).collect::<Vec<_>>(),
            difference(&now, nearest, name)
        ))
    }

    /// Runs the pipeline undisturbed and expects success.
    fn run_again(&mut self) -> Outcome {
        let shim = self.site.shim();
        let ended = self.start("demo.toml", &[], &shim, None).end()?;
        self.note("run again", &ended);
        (ended.code() == Some(0)).then_some(()).ok_or_else(|| format!("the next run fails: {}", ended.stderr))
    }

    /// Checks the final state: the rows of `past` (if the sink appends, sometimes also after one more run), and no
    /// leftover files.
    fn finish(&mut self, past: &Past, night: u8) -> Outcome {
        self.expect("at the end", &[("the table of undisturbed runs", &past.tables)])?;
        if self.case.sink.appends() && self.random.chance(0.3) {
            self.run_again()?;
            self.expect("after one more run", &[("the table of undisturbed runs", &past.tables)])?;
        }
        self.nothing_left(past, night)
    }

    fn nothing_left(&mut self, past: &Past, night: u8) -> Outcome {
        let left = self.site.leftovers(&past.files);
        if !left.is_empty() {
            return Err(format!("left behind: {}", left.join(", ")));
        }
        self.site.source_is(night).then_some(()).ok_or("the source is not as it was".into())
    }

    /// Picks a random call of this kind among those that the run is expected to make.
    fn some_call(&mut self, kind: &str, past: &Past) -> Option<String> {
        let count = *past.calls.get(kind)?;
        Some(format!("{kind}:{}", 1 + self.random.below(count)))
    }

    /// Kills one to four runs in a row, each at another call, then lets one complete.
    fn kill(&mut self) -> Outcome {
        let (old, new) = (self.after(&[]), self.after(&[Run::First(2)]));
        self.site.put_source(2);
        for _ in 0..=self.random.below(4) {
            let mut shim = self.site.shim();
            if let Disturbance::KillAt(kind) = self.case.disturbance {
                let Some(call) = self.some_call(kind, &new) else { break };
                shim.at = Some((call, self.random.one_of(&["before", "before", "after", "torn"])));
            }
            let mut run = self.start("demo.toml", &[], &shim, None);
            if self.case.disturbance == Disturbance::KillAtRandom {
                std::thread::sleep(new.took.mul_f64(self.random.fraction() * 1.1));
                run.signal(Signal::KILL);
            }
            let ended = run.end()?;
            self.note("killed", &ended);
            if ended.is_killed() {
                self.count.kills += 1;
                self.count.disturbed += 1;
            } else if ended.code() != Some(0) {
                return Err(format!("a run fails after a kill: {}", ended.stderr));
            }
            self.expect("after the kill", &[("the old table", &old.tables), ("the new table", &new.tables)])?;
        }
        self.run_again()?;
        self.finish(&new, 2)
    }

    /// Stops a run at a call, lets a run with newer data replace it, and continues the stopped run.
    fn stop(&mut self) -> Outcome {
        let (second, third) = (Run::First(2), Run::First(3));
        let (old, new) = (self.after(&[]), self.after(&[second]));
        let (newest, both) = (self.after(&[third]), self.after(&[second, third]));
        self.site.put_source(2);
        let kinds: Vec<String> = new.calls.keys().cloned().collect();
        let kind = kinds[self.random.below(kinds.len() as u64) as usize].clone();
        let mut shim = self.site.shim();
        shim.at = self.some_call(&kind, &new).map(|call| (call, "stop"));
        let mut stopped = self.start("demo.toml", &[], &shim, None);
        if !stopped.wait_until_stopped()? {
            let ended = stopped.end()?;
            self.note("not stopped", &ended);
            self.expect("without a stop", &[("the new table", &new.tables)])?;
            return Ok(());
        }
        self.count.disturbed += 1;
        let judged = self.newer_run(&mut stopped, &[("the old table", &old.tables), ("the new table", &new.tables)]);
        stopped.signal(Signal::CONT);
        let ended = stopped.end()?;
        self.note("continued", &ended);
        let was_refused = judged?;
        let allowed = [("the newest table", &newest.tables), ("both nights", &both.tables)];
        if !was_refused {
            self.expect("after the stopped run went on", &allowed)?;
        }
        if ended.code() == Some(0) && ended.stderr.contains(" is lost") {
            return Err(format!("a run that lost the lock ends with 0: {}", ended.stderr));
        }
        self.run_again()?;
        self.expect("at the end", &allowed)?;
        self.nothing_left(&both, 3)
    }

    /// Runs with newer data in place of a stopped run. Returns true if the stopped run holds a lock that cannot be
    /// taken over.
    fn newer_run(&mut self, stopped: &mut Running, allowed: &[(&str, &Tables)]) -> Result<bool, String> {
        self.expect("while it is stopped", allowed)?;
        self.site.lose_the_lock();
        self.site.put_source(3);
        let shim = self.site.shim();
        let mut newer = self.start("demo.toml", &[], &shim, None);
        let waits = !newer.ends_within(WAIT_LIMIT);
        if waits {
            stopped.signal(Signal::CONT);
        }
        let ended = newer.end()?;
        self.note(if waits { "newer, which waited for the stopped run" } else { "newer" }, &ended);
        match ended.code() {
            Some(0) => Ok(waits),
            // The lock of the store, or that of an output file's folder.
            Some(1) if ["in use", "does not finish"].iter().any(|text| ended.stderr.contains(text)) => Ok(true),
            _ => Err(format!("the newer run fails: {}", ended.stderr)),
        }
    }

    /// Runs one pipeline several times concurrently.
    fn together(&mut self, runs: usize) -> Outcome {
        let (old, new) = (self.after(&[]), self.after(&[Run::First(2)]));
        self.site.put_source(2);
        let wait = self.random.chance(0.5);
        let more = if wait { &["--wait", "120s"][..] } else { &[] };
        let shim = self.site.shim();
        let mut running = Vec::new();
        for _ in 0..runs {
            running.push(self.start("demo.toml", more, &shim, None));
            std::thread::sleep(new.took.mul_f64(self.random.fraction() * 0.4));
        }
        self.count.disturbed += runs;
        if self.random.chance(0.4) {
            std::thread::sleep(new.took.mul_f64(self.random.fraction() * 0.6));
            let victim = self.random.below(runs as u64) as usize;
            running[victim].signal(Signal::KILL);
        }
        for run in running {
            let ended = run.end()?;
            self.note("one of several", &ended);
            self.count.kills += usize::from(ended.is_killed());
            let is_busy = ended.code() == Some(1) && ended.stderr.contains("in use by another run") && !wait;
            if !ended.is_killed() && !is_busy && ended.code() != Some(0) {
                return Err(format!("a run beside others fails: {}", ended.stderr));
            }
        }
        self.expect("after all of them", &[("the old table", &old.tables), ("the new table", &new.tables)])?;
        self.run_again()?;
        self.finish(&new, 2)
    }

    /// Runs two pipelines on one sink concurrently, each until it has succeeded once.
    fn pipelines(&mut self) -> Outcome {
        let both = self.after(&[Run::First(2), Run::Second(2)]);
        self.site.put_source(2);
        let shim = self.site.shim();
        let mut names = vec!["demo.toml", "other.toml"];
        for round in 0.. {
            let running: Vec<_> = names.iter().map(|name| (*name, self.start(name, &[], &shim, None))).collect();
            if round == 0 && self.random.chance(0.3) {
                std::thread::sleep(both.took.mul_f64(self.random.fraction()));
            }
            names.clear();
            for (name, run) in running {
                let ended = run.end()?;
                self.note(name, &ended);
                self.count.disturbed += 1;
                match ended.code() {
                    Some(0) => {}
                    Some(1) if round < 5 => names.push(name),
                    _ => return Err(format!("a pipeline beside another fails: {}", ended.stderr)),
                }
            }
            if names.is_empty() {
                break;
            }
        }
        self.expect("at the end", &[("the rows of both pipelines", &both.tables)])?;
        self.nothing_left(&both, 2)
    }

    /// Runs with a clock that jumps, optionally with a kill, and again with another clock.
    fn clock(&mut self) -> Outcome {
        let (old, new) = (self.after(&[]), self.after(&[Run::First(2)]));
        self.site.put_source(2);
        let kill = self.random.chance(0.5);
        for is_first in [true, false] {
            // Servers refuse requests whose signature is 15 minutes off.
            let most = if self.case.is_local { 40 * 86_400 } else { 600 };
            let jumps = (0..8).map(|_| self.random.below(2 * most) as i64 - most as i64).collect();
            let shim = Shim { clock: jumps, ..self.site.shim() };
            let mut run = self.start("demo.toml", &[], &shim, None);
            if is_first && kill {
                std::thread::sleep(new.took.mul_f64(self.random.fraction() * 1.1));
                run.signal(Signal::KILL);
            }
            let ended = run.end()?;
            self.note("with a jumping clock", &ended);
            self.count.disturbed += 1;
            self.count.kills += usize::from(ended.is_killed());
            if !ended.is_killed() && ended.code() != Some(0) {
                return Err(format!("a run with a jumping clock fails: {}", ended.stderr));
            }
            self.expect("after the clock", &[("the old table", &old.tables), ("the new table", &new.tables)])?;
        }
        self.run_again()?;
        self.finish(&new, 2)
    }

    /// Runs while requests fail.
    fn requests(&mut self, fault: Fault) -> Outcome {
        let (old, new) = (self.after(&[]), self.after(&[Run::First(2)]));
        self.site.put_source(2);
        let server = self.world.server.unwrap();
        let proxy = Proxy::start(&server.address(), self.random.number(), |_| ());
        let rule = Rule::new(fault);
        let kinds = [Kind::PutIf, Kind::Put, Kind::Get, Kind::Head, Kind::List, Kind::Delete];
        proxy.fail(match self.random.below(3) {
            0 => rule.rate(0.1),
            1 => rule.on(&[self.random.one_of(&kinds)]).after(self.random.below(4) as usize).times(3),
            _ => rule.on(&[Kind::PutIf]).rate(0.4).times(6),
        });
        let shim = self.site.shim();
        let ended = self.start("demo.toml", &[], &shim, Some(&proxy.endpoint())).end()?;
        self.note("with failing requests", &ended);
        self.count.disturbed += proxy.faults(fault);
        let failed = proxy.log().into_iter().filter(|(_, _, fault)| fault.is_some());
        self.log.extend(failed.map(|(kind, target, _)| format!("failed: {kind:?} {target}")));
        drop(proxy);
        let new_or_old = [("the old table", &old.tables), ("the new table", &new.tables)];
        let allowed = if ended.code() == Some(0) { &new_or_old[1..] } else { &new_or_old[..] };
        self.expect("after the failing requests", allowed)?;
        self.run_again()?;
        self.finish(&new, 2)
    }

    /// Kills the server during a run and restarts it.
    fn server(&mut self) -> Outcome {
        let (old, new) = (self.after(&[]), self.after(&[Run::First(2)]));
        self.site.put_source(2);
        let shim = self.site.shim();
        let run = self.start("demo.toml", &[], &shim, None);
        std::thread::sleep(new.took.mul_f64(self.random.fraction()));
        self.world.server.unwrap().restart(Duration::from_millis(200 + self.random.below(1000)));
        self.count.disturbed += 1;
        let ended = run.end()?;
        self.note("while the server was killed", &ended);
        let new_or_old = [("the old table", &old.tables), ("the new table", &new.tables)];
        let allowed = if ended.code() == Some(0) { &new_or_old[1..] } else { &new_or_old[..] };
        self.expect("after the kill of the server", allowed)?;
        self.run_again()?;
        self.finish(&new, 2)
    }
}

/// Describes the difference between two tables, with an example row of each.
fn difference(now: &Tables, then: &Tables, name: &str) -> String {
    let without = |rows: &[String], others: &[String]| -> Vec<String> {
        let mut rows = rows.to_vec();
        for other in others {
            if let Some(at) = rows.iter().position(|row| row == other) {
                rows.remove(at);
            }
        }
        rows
    };
    let mut parts = Vec::new();
    for (table, now, then) in [("main", &now.main, &then.main), ("rejected", &now.rejected, &then.rejected)] {
        let (more, fewer) = (without(now, then), without(then, now));
        let such = |rows: &[String]| match rows.first() {
            Some(row) => format!("{} ({})", rows.len(), short(row)),
            None => "none".into(),
        };
        parts.push(format!(
            "{table} has {} rows, {name} has {}: too many are {}, missing are {}",
            now.len(),
            then.len(),
            such(&more),
            such(&fewer)
        ));
    }
    parts.join("; ")
}

/// The part of a row that identifies it.
fn short(row: &str) -> String {
    let row: serde_json::Value = serde_json::from_str(row).unwrap();
    format!("id {}, b {}", row["id"], row["b"])
}
