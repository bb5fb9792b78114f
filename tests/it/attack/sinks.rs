//! The sinks and modes under attack, and their rows.

use std::fmt;

use super::random::Random;

/// A table format, a write mode, and the destination of rejected rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sink {
    pub name: &'static str,
    /// The rest of the `[sink]` section, after the URI.
    settings: &'static str,
    pub quarantine: bool,
    /// True if the rows are large enough for multipart uploads to a bucket.
    pub in_parts: bool,
}

impl Sink {
    const fn new(name: &'static str, settings: &'static str) -> Self {
        Self { name, settings, quarantine: false, in_parts: false }
    }

    const fn with_quarantine(name: &'static str, settings: &'static str) -> Self {
        Self { name, settings, quarantine: true, in_parts: false }
    }

    const fn in_parts(name: &'static str, settings: &'static str) -> Self {
        Self { name, settings, quarantine: false, in_parts: true }
    }
}

const FILE: &str = "";
const RUNS: &str = "mode = \"overwrite\"";
const RUNS_APPEND: &str = "mode = \"append\"";
const RUNS_KEEP: &str = "mode = \"overwrite\"\nkeep = 2";
const DELTA: &str = "format = \"delta\"\nmode = \"overwrite\"";
const DELTA_APPEND: &str = "format = \"delta\"\nmode = \"append\"";
const DELTA_MERGE: &str = "format = \"delta\"\nmode = \"merge\"";
const PARTS: &str = "format = \"delta\"\nmode = \"overwrite\"\npartition_by = [\"part\"]";
const PARTS_APPEND: &str = "format = \"delta\"\nmode = \"append\"\npartition_by = [\"part\"]";
const PARTS_MERGE: &str = "format = \"delta\"\nmode = \"merge\"\npartition_by = [\"part\"]";

/// All sinks. The short run uses the first [`SHORT`].
pub const SINKS: [Sink; 21] = [
    Sink::new("file", FILE),
    Sink::new("delta append", DELTA_APPEND),
    Sink::with_quarantine("runs append, quarantine", RUNS_APPEND),
    Sink::with_quarantine("delta by part merge, quarantine", PARTS_MERGE),
    Sink::new("runs keep", RUNS_KEEP),
    Sink::with_quarantine("delta append, quarantine", DELTA_APPEND),
    Sink::with_quarantine("file, quarantine", FILE),
    Sink::new("runs overwrite", RUNS),
    Sink::with_quarantine("runs overwrite, quarantine", RUNS),
    Sink::new("runs append", RUNS_APPEND),
    Sink::with_quarantine("runs keep, quarantine", RUNS_KEEP),
    Sink::new("delta overwrite", DELTA),
    Sink::with_quarantine("delta overwrite, quarantine", DELTA),
    Sink::new("delta merge", DELTA_MERGE),
    Sink::with_quarantine("delta merge, quarantine", DELTA_MERGE),
    Sink::new("delta by part overwrite", PARTS),
    Sink::with_quarantine("delta by part overwrite, quarantine", PARTS),
    Sink::new("delta by part append", PARTS_APPEND),
    Sink::with_quarantine("delta by part append, quarantine", PARTS_APPEND),
    Sink::new("delta by part merge", PARTS_MERGE),
    Sink::in_parts("file in parts", FILE),
];

/// The number of [`SINKS`] in the short run.
pub const SHORT: usize = 6;

impl fmt::Display for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl Sink {
    pub fn of(name: &str) -> Option<Self> {
        SINKS.into_iter().find(|sink| sink.name == name)
    }

    pub fn is_delta(self) -> bool {
        self.settings.contains("delta")
    }

    pub fn appends(self) -> bool {
        self.settings.contains("append")
    }

    /// Builds a pipeline that writes to this sink. All its places except the model are in the folder or bucket `at`.
    pub fn pipeline(self, name: &str, at: &str, store: &str) -> String {
        let output = if self.settings == FILE { "scores.parquet" } else { "scores" };
        let errors = if self.quarantine { "quarantine" } else { "column" };
        let noise = if self.in_parts { ", noise" } else { "" };
        // A column that differs in every run, so that rows appended twice cannot be detected by their content.
        format!(
            r#"
name = "{name}"
[tables]
pairs = "{at}pairs.csv"
[source]
sql = "SELECT id, a, b, id % 2 AS part, uuid() AS tag{noise} FROM pairs"
id = "id"
text = ["a", "b"]
[model]
uri = {model:?}
[sink]
uri = "{at}out/{output}"
{settings}
[score]
store = "{at}{store}"
checkpoint = "1ms"
errors = "{errors}"
[run]
window = 16
"#,
            model = crate::support::golden("tiny-distilbert"),
            settings = self.settings,
        )
    }
}

/// Generates the rows of a night. Each night has the ids of the previous one and some more, and every third row
/// differs. A few rows have no text and are rejected.
pub fn pairs(night: u8, in_parts: bool) -> String {
    let mut random = Random::new(night.into());
    // Incompressible filler.
    let mut noise = || -> String { (0..350_000).map(|_| char::from(b'-' + random.below(47) as u8)).collect() };
    let mut csv = String::from(if in_parts { "id,a,b,noise\n" } else { "id,a,b\n" });
    for id in 0..30 + 8 * u32::from(night) {
        // Some texts occur twice.
        let text = id - u32::from(id % 4 == 3);
        let night = if id % 3 == 0 { night } else { 0 };
        let a = if id % 20 == 7 { String::new() } else { format!("Night {night}: letter {text} was read") };
        let noise = if in_parts { format!(",{}", noise()) } else { String::new() };
        csv.push_str(&format!("{id},{a},Letter {text} reached the council in night {night}{noise}\n"));
    }
    csv
}
