//! The sinks and modes that are disturbed, and the rows that go there.

use std::fmt;

/// A kind of table, a mode, and where rejected rows go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sink {
    pub name: &'static str,
    /// The rest of the section `[sink]`, behind the URI.
    settings: &'static str,
    pub quarantine: bool,
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

/// All sinks. The short run takes the first [`SHORT`].
pub const SINKS: [Sink; 20] = [
    Sink { name: "file", settings: FILE, quarantine: false },
    Sink { name: "delta append", settings: DELTA_APPEND, quarantine: false },
    Sink { name: "runs append, quarantine", settings: RUNS_APPEND, quarantine: true },
    Sink { name: "delta by part merge, quarantine", settings: PARTS_MERGE, quarantine: true },
    Sink { name: "runs keep", settings: RUNS_KEEP, quarantine: false },
    Sink { name: "delta append, quarantine", settings: DELTA_APPEND, quarantine: true },
    Sink { name: "file, quarantine", settings: FILE, quarantine: true },
    Sink { name: "runs overwrite", settings: RUNS, quarantine: false },
    Sink { name: "runs overwrite, quarantine", settings: RUNS, quarantine: true },
    Sink { name: "runs append", settings: RUNS_APPEND, quarantine: false },
    Sink { name: "runs keep, quarantine", settings: RUNS_KEEP, quarantine: true },
    Sink { name: "delta overwrite", settings: DELTA, quarantine: false },
    Sink { name: "delta overwrite, quarantine", settings: DELTA, quarantine: true },
    Sink { name: "delta merge", settings: DELTA_MERGE, quarantine: false },
    Sink { name: "delta merge, quarantine", settings: DELTA_MERGE, quarantine: true },
    Sink { name: "delta by part overwrite", settings: PARTS, quarantine: false },
    Sink { name: "delta by part overwrite, quarantine", settings: PARTS, quarantine: true },
    Sink { name: "delta by part append", settings: PARTS_APPEND, quarantine: false },
    Sink { name: "delta by part append, quarantine", settings: PARTS_APPEND, quarantine: true },
    Sink { name: "delta by part merge", settings: PARTS_MERGE, quarantine: false },
];

/// How many of [`SINKS`] the short run takes.
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

    /// A pipeline that writes here, with all its places in the folder or bucket `at`, but for the model.
    pub fn pipeline(self, name: &str, at: &str, store: &str) -> String {
        let output = if self.settings == FILE { "scores.parquet" } else { "scores" };
        let errors = if self.quarantine { "quarantine" } else { "column" };
        // A column that no run has as the one before had it: what is appended twice cannot be told by its content.
        format!(
            r#"
name = "{name}"
[tables]
pairs = "{at}pairs.csv"
[source]
sql = "SELECT id, a, b, id % 2 AS part, uuid() AS tag FROM pairs"
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

/// The rows of a night. Each night has the ids of the one before and some more, and every third row is another one; a
/// few have no text and are rejected.
pub fn pairs(night: u8) -> String {
    let mut csv = String::from("id,a,b\n");
    for id in 0..30 + 8 * u32::from(night) {
        // Some texts come twice.
        let text = id - u32::from(id % 4 == 3);
        let night = if id % 3 == 0 { night } else { 0 };
        match id % 20 {
            7 => csv.push_str(&format!("{id},,Letter {text} reached the council in night {night}\n")),
            _ => {
                csv.push_str(&format!("{id},Night {night}: letter {text} was read,Letter {text} reached the council\n"))
            }
        }
    }
    csv
}
