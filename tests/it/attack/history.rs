//! The results of undisturbed runs: tables, files and calls. Disturbed runs are compared with them. Each sequence runs
//! once.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use super::process::Running;
use super::sinks::Sink;
use super::site::{Place, Site, Tables};

/// A run of the first pipeline with the data of a night, or a run of the second pipeline on the same sink.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Run {
    First(u8),
    Second(u8),
}

/// The state after a sequence of undisturbed runs.
pub struct Past {
    pub site: Site,
    pub tables: Tables,
    /// Kinds of files in sink and store, including those left by earlier runs of the sequence.
    pub files: BTreeSet<String>,
    /// The number of calls of each kind in the last run, and its duration.
    pub calls: BTreeMap<String, u64>,
    pub took: Duration,
}

type Key = (&'static str, Sink, Vec<Run>);

type Once = Arc<OnceLock<Arc<Past>>>;

/// All sequences computed so far.
#[derive(Default)]
pub struct History(Mutex<HashMap<Key, Once>>);

impl History {
    /// Returns the state after these runs.
    pub fn after(&self, place: Place, sink: Sink, runs: &[Run]) -> Arc<Past> {
        let key = (place.name(), sink, runs.to_vec());
        let once = Arc::clone(self.0.lock().unwrap().entry(key).or_default());
        Arc::clone(once.get_or_init(|| Arc::new(self.run(place, sink, runs))))
    }

    fn run(&self, place: Place, sink: Sink, runs: &[Run]) -> Past {
        let Some((last, before)) = runs.split_last() else {
            let site = Site::new(place, sink);
            let (tables, files, calls) = (Tables::default(), BTreeSet::new(), BTreeMap::new());
            return Past { site, tables, files, calls, took: Duration::ZERO };
        };
        let before = self.after(place, sink, before);
        let site = before.site.copy();
        let (pipeline, night) = match last {
            Run::First(night) => ("demo.toml", *night),
            Run::Second(night) => ("other.toml", *night),
        };
        site.put_source(night);
        let run = Running::start(site.couplet(&["run", pipeline], None), &site.shim(), &site.path("messages"), "run");
        let ended = run.end().unwrap();
        assert_eq!(ended.code(), Some(0), "an undisturbed run fails: {}", ended.stderr);
        let tables = site.tables().unwrap();
        assert!(!tables.main.is_empty());
        let files = before.files.union(&site.kinds_of_files()).cloned().collect();
        Past { tables, files, calls: ended.counts(), took: ended.took, site }
    }
}
