//! The model card: the YAML front matter of a model's README.md, and the `training.json` of couplet's training.
//!
//! Both are untrusted and used for display only. Content that cannot be parsed is skipped.

use couplet_storage::escape::in_line;
use saphyr_parser::{Event, Parser, ScalarStyle};
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

/// The largest accepted README.md or `training.json`, in bytes.
pub const MAX_BYTES: u64 = 8 << 20;

/// The file with the model card.
pub const README: &str = "README.md";
/// The file with the record of couplet's training.
pub const TRAINING: &str = "training.json";

/// The deepest nesting of front matter. Real front matter has at most six levels.
const MAX_DEPTH: usize = 32;

/// The most names or metrics of one kind that are shown.
const MAX_ITEMS: usize = 100;

/// The most characters of a text that are shown.
const MAX_CHARS: usize = 200;

/// Descriptive information about a model.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Card {
    /// The licence: an SPDX identifier or the author's text.
    pub licence: Option<String>,
    /// The base models.
    #[serde(rename = "base_model")]
    pub base: Vec<String>,
    /// The training data sets.
    pub datasets: Vec<String>,
    /// The supported languages.
    pub languages: Vec<String>,
    /// The metrics with their values and data sets; only their names if the card has no values.
    pub metrics: Vec<String>,
    /// The record of couplet's training.
    pub training: Option<Training>,
}

/// The content of `training.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct Training {
    json: Value,
}

impl Card {
    /// Reads a card from the contents of README.md and `training.json`, either of which may be missing or invalid.
    #[must_use]
    pub fn read(readme: Option<&[u8]>, training: Option<&[u8]>) -> Self {
        let front = readme.map(|text| front_matter(&String::from_utf8_lossy(text))).unwrap_or_default();
        let license = texts(&front["license"]).into_iter().next();
        let custom = texts(&front["license_name"]).into_iter().next();
        let training = training.and_then(|text| serde_json::from_slice(text).ok()).map(|json| Training { json });
        let mut metrics = measured(&front["model-index"]);
        if metrics.is_empty() {
            metrics = texts(&front["metrics"]);
        }
        Self {
            // "other" means that the name is in `license_name`.
            licence: license.filter(|name| name != "other").or(custom).or_else(|| texts(&front["license"]).pop()),
            base: capped(texts(&front["base_model"])),
            datasets: capped(texts(&front["datasets"])),
            languages: capped(texts(&front["language"])),
            metrics: capped(metrics),
            training,
        }
    }
}

/// Serializes a summary, without loss curves and per-epoch values.
impl Serialize for Training {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let json = &self.json;
        let keys = ["kind", "couplet", "base", "task", "rows", "steps", "epoch", "settings", "held_out", "promotion"];
        let mut out: Map<String, Value> =
            keys.iter().filter_map(|key| Some(((*key).to_owned(), json.get(*key)?.clone()))).collect();
        for (key, of) in [("metrics", "evaluation"), ("calibrated_metrics", "calibrated")] {
            out.insert(key.into(), json[of]["metrics"].clone());
        }
        out.insert("held_out_rows".into(), json["evaluation"]["rows"].clone());
        out.serialize(serializer)
    }
}

impl Training {
    /// Returns the model that training started from, or "random weights".
    #[must_use]
    pub fn base(&self) -> Option<String> {
        match &self.json["base"] {
            Value::String(base) => Some(one_line(base)),
            Value::Object(_) => Some("random weights".into()),
            _ => None,
        }
    }

    /// Returns a one-line summary of the training: task, rows, steps and settings.
    #[must_use]
    pub fn summary(&self) -> String {
        let json = &self.json;
        let number = |value: &Value| value.as_u64().map(couplet_storage::words::grouped);
        let task = if json["kind"] == "pretrain" {
            "pretrained by masked words".to_owned()
        } else {
            let name = json["task"].as_str();
            name.map_or("fine-tuned".into(), |name| format!("fine-tuned for {}", one_line(name)))
        };
        let parts = [
            Some(task),
            number(&json["rows"]["training"]).map(|n| format!("{n} rows")),
            number(&json["steps"]).map(|n| format!("{n} steps")),
            number(&json["epoch"])
                .zip(number(&json["settings"]["epochs"]))
                .map(|(best, all)| format!("epoch {best} of {all}")),
            json["settings"]["learning_rate"].as_f64().map(|rate| format!("learning rate {rate}")),
            json["settings"]["seed"].as_u64().map(|seed| format!("seed {seed}")),
            json["couplet"].as_str().map(|version| format!("by couplet {}", one_line(version))),
        ];
        parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
    }

    /// Returns the metrics on the held-out rows, one line per evaluation.
    #[must_use]
    pub fn metrics(&self) -> Vec<String> {
        let json = &self.json;
        let named = |of: &Value| {
            let metrics = of["metrics"].as_object()?;
            let values =
                metrics.iter().filter_map(|(name, value)| Some(format!("{} {:.4}", one_line(name), value.as_f64()?)));
            Some(values.take(MAX_ITEMS).collect::<Vec<_>>().join(", ")).filter(|line| !line.is_empty())
        };
        let rows = json["evaluation"]["rows"].as_u64().map(couplet_storage::words::grouped);
        let rows = rows.map_or_else(String::new, |rows| format!(" on {rows} held-out rows"));
        let positive = json["evaluation"]["positive"].as_str().map(one_line);
        let positive = positive.map_or_else(String::new, |label| format!("; positive is \"{label}\""));
        let mut lines: Vec<String> =
            named(&json["evaluation"]).map(|line| format!("{line}{rows}{positive}")).into_iter().collect();
        lines.extend(named(&json["calibrated"]).map(|line| format!("calibrated: {line}")));
        for evaluation in json["held_out"].as_array().into_iter().flatten().take(MAX_ITEMS) {
            let values = evaluation["mask_probability"].as_f64().zip(evaluation["after"]["perplexity"].as_f64());
            let values = values.zip(evaluation["after"]["accuracy"].as_f64());
            lines.extend(values.map(|((share, perplexity), accuracy)| {
                format!("perplexity {perplexity:.2}, accuracy {accuracy:.4} on words of which {share} are hidden")
            }));
        }
        lines
    }
}

/// Returns the metrics of a `model-index`, such as `accuracy 0.87 (glue mrpc, validation)`.
fn measured(index: &Value) -> Vec<String> {
    // A list with one model. Some cards have the model without the list.
    let models = index.as_array().map_or(std::slice::from_ref(index), Vec::as_slice);
    let results = models.iter().filter_map(|model| model["results"].as_array()).flatten();
    let lines = results.flat_map(|result| {
        let dataset = &result["dataset"];
        let on: Vec<&str> = ["name", "split"].iter().filter_map(|key| dataset[*key].as_str()).collect();
        let on = if on.is_empty() { String::new() } else { format!(" ({})", on.join(", ")) };
        let metrics = result["metrics"].as_array().into_iter().flatten();
        metrics.filter_map(move |metric| {
            let name = metric["type"].as_str().or(metric["name"].as_str())?;
            let value = texts(&metric["value"]).join(" ");
            (!value.is_empty()).then(|| one_line(&format!("{name} {value}{on}")))
        })
    });
    lines.collect()
}

/// Returns a text, the texts of a list, or the name of an object, each shortened to one line.
fn texts(value: &Value) -> Vec<String> {
    match value {
        Value::String(text) => Some(one_line(text)).filter(|text| !text.is_empty()).into_iter().collect(),
        Value::Array(values) => values.iter().flat_map(texts).collect(),
        Value::Object(table) => ["name", "type"].iter().find_map(|key| table.get(*key)).map(texts).unwrap_or_default(),
        _ => Vec::new(),
    }
}

/// Keeps the first [`MAX_ITEMS`] texts and adds the number of the others.
fn capped(mut texts: Vec<String>) -> Vec<String> {
    if texts.len() > MAX_ITEMS {
        let more = format!("and {} more", texts.len() - MAX_ITEMS);
        texts.truncate(MAX_ITEMS);
        texts.push(more);
    }
    texts
}

/// Shortens an untrusted text to one line and escapes terminal control characters.
fn one_line(text: &str) -> String {
    let start: String = text.trim_start().chars().take(4 * MAX_CHARS).collect();
    let words = start.split_whitespace().collect::<Vec<_>>().join(" ");
    let shown = in_line(&words);
    match shown.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{}…", &shown[..end]),
        None => shown.into_owned(),
    }
}

/// Parses the YAML between the first two `---` lines. Returns null if there is none or if it is invalid.
fn front_matter(readme: &str) -> Value {
    let text = readme.trim_start_matches('\u{feff}').trim_start();
    let mut lines = text.split_inclusive('\n');
    if lines.next().is_none_or(|line| line.trim_end() != "---") {
        return Value::Null;
    }
    let rest = &text[text.find('\n').map_or(text.len(), |end| end + 1)..];
    let mut end = 0;
    for line in lines {
        if line.trim_end() == "---" {
            return yaml(&rest[..end]).unwrap_or_default();
        }
        end += line.len();
    }
    Value::Null
}

/// Converts YAML to JSON. Aliases become null, because a few nested aliases can expand to more than fits into memory.
fn yaml(text: &str) -> Option<Value> {
    enum Open {
        List(Vec<Value>),
        Map(Map<String, Value>, Option<String>),
    }
    let mut open: Vec<Open> = Vec::new();
    for event in Parser::new_from_str(text) {
        let mut value = match event.ok()?.0 {
            Event::SequenceStart(..) => {
                open.push(Open::List(Vec::new()));
                None
            }
            Event::MappingStart(..) => {
                open.push(Open::Map(Map::new(), None));
                None
            }
            Event::SequenceEnd | Event::MappingEnd => match open.pop()? {
                Open::List(values) => Some(Value::Array(values)),
                Open::Map(map, _) => Some(Value::Object(map)),
            },
            Event::Scalar(text, style, ..) => Some(scalar(&text, style)),
            Event::Alias(..) => Some(Value::Null),
            _ => None,
        };
        if open.len() > MAX_DEPTH {
            return None;
        }
        match (value.take(), open.last_mut()) {
            (None, _) => {}
            (Some(value), None) => return Some(value),
            (Some(value), Some(Open::List(values))) => values.push(value),
            (Some(value), Some(Open::Map(map, key))) => match key.take() {
                Some(key) => drop(map.insert(key, value)),
                None => *key = Some(value.as_str().map_or_else(|| value.to_string(), str::to_owned)),
            },
        }
    }
    None
}

/// Converts a scalar to null or a string. A number stays a string, so that its digits are preserved.
fn scalar(text: &str, style: ScalarStyle) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" if style == ScalarStyle::Plain => Value::Null,
        _ => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRONT_MATTER: &str = "---
license: apache-2.0
language: [en, de]
base_model: org/base
datasets:
- glue
- 'org/\u{1b}[31mown'
metrics: [accuracy, f1]
model-index:
- name: mine
  results:
  - task: {type: text-classification}
    dataset:
      name: GLUE MRPC
      split: validation
    metrics:
    - type: accuracy
      value: 0.8725
---
# Mine
";

    #[test]
    fn reads_the_front_matter_of_a_readme() {
        let card = Card::read(Some(FRONT_MATTER.as_bytes()), None);
        assert_eq!(card.licence.as_deref(), Some("apache-2.0"));
        assert_eq!(card.base, ["org/base"]);
        assert_eq!(card.datasets, ["glue", r"org/\u{1b}[31mown"]);
        assert_eq!(card.languages, ["en", "de"]);
        assert_eq!(card.metrics, ["accuracy 0.8725 (GLUE MRPC, validation)"]);
        let other = "---\nlicense: other\nlicense_name: my-own\nmetrics:\n- f1\n---\n";
        let card = Card::read(Some(other.as_bytes()), None);
        assert_eq!((card.licence.as_deref(), card.metrics), (Some("my-own"), vec!["f1".to_owned()]));
    }

    fn card_of(front_matter: &str) -> Card {
        Card::read(Some(format!("---\n{front_matter}\n---\n# Mine\n").as_bytes()), None)
    }

    #[test]
    fn numbers_keep_their_digits() {
        let measured = |value: &str| {
            let result = format!("model-index: [{{results: [{{metrics: [{{type: f1, value: {value}}}]}}]}}]");
            card_of(&result).metrics
        };
        for value in ["0.90", "0.87254901960784315", "1e-5", "98765432109876543210", "91.5 %", ".nan"] {
            assert_eq!(measured(value), [format!("f1 {value}")]);
        }
        assert_eq!(measured("'0.9'"), ["f1 0.9"]);
        assert_eq!(measured("[0.9, 0.8]"), ["f1 0.9 0.8"]);
        for value in ["null", "~", "", "[]", "{a: 1}"] {
            assert_eq!(measured(value), Vec::<String>::new(), "{value}");
        }
    }

    #[test]
    fn reads_front_matter_of_unusual_shapes() {
        assert_eq!(card_of("license: [mit, apache-2.0]").licence.as_deref(), Some("mit"));
        assert_eq!(card_of("license: {name: mine, link: x}").licence.as_deref(), Some("mine"));
        assert_eq!(card_of("license: other").licence.as_deref(), Some("other"));
        assert_eq!(card_of("license:\nlanguage: no").languages, ["no"]);
        assert_eq!(
            card_of("datasets:\n- type: glue\n  args: mrpc\n- [a, [b]]\n- null\n- ''").datasets,
            ["glue", "a", "b"]
        );
        assert_eq!(card_of("metrics:\n- name: f1\n  value: 0.9").metrics, ["f1"]);
        assert_eq!(card_of("model-index:\n  results:\n  - metrics: [{name: f1, value: 1}]").metrics, ["f1 1"]);
        assert_eq!(card_of("a: &a {b: c}\nd: *a\n<<: *a\n? [x, y]\n: z\nlicense: mit").licence.as_deref(), Some("mit"));
        assert_eq!(card_of("license: |\n  of\n  my own").licence.as_deref(), Some("of my own"));
        assert_eq!(card_of("license: a --- b\nx: |\n  ---\n  y").licence.as_deref(), Some("a --- b"));
        // Windows line ends and a byte order mark.
        let text = "\u{feff}---\r\nlicense: mit\r\n---\r\n";
        assert_eq!(Card::read(Some(text.as_bytes()), None).licence.as_deref(), Some("mit"));
    }

    #[test]
    fn long_texts_and_lists_are_shortened() {
        let card = card_of(&format!("license: {}\ndatasets: [{}]", "x".repeat(1 << 20), "a, ".repeat(100_000)));
        assert_eq!(card.licence.map(|licence| licence.chars().count()), Some(MAX_CHARS + 1));
        assert_eq!(card.datasets.len(), MAX_ITEMS + 1);
        assert_eq!(card.datasets.last().map(String::as_str), Some("and 99900 more"));
    }

    #[test]
    fn training_texts_are_escaped_and_stay_on_one_line() {
        let json = br#"{"task": "x\n  licence       MIT", "couplet": "\u001b[2J", "base": "a\nb",
            "evaluation": {"metrics": {"f1\n\u009b": 0.5}}}"#;
        let training = Card::read(None, Some(json)).training.unwrap();
        assert_eq!(training.summary(), r"fine-tuned for x licence MIT, by couplet \u{1b}[2J");
        assert_eq!(training.base().as_deref(), Some("a b"));
        assert_eq!(training.metrics(), [r"f1 \u{9b} 0.5000"]);
    }

    #[test]
    fn invalid_cards_are_skipped() {
        let deep = format!("---\nlicense: {}\n---\n", "[".repeat(100_000));
        let bomb = "---\na: &a [x, x, x, x]\nlicense: *a\n---\n";
        for text in ["", "# Mine\n", "---\n", "---\nlicense: [\n---\n", "---\n\t- :\n---", &deep, bomb] {
            assert_eq!(Card::read(Some(text.as_bytes()), Some(b"not JSON")).licence, None, "{text:.30}");
        }
        assert_eq!(Card::read(None, None), Card::default());
    }
}
