//! What is written of a model beside its weights: the head of its README.md, which hubs call a model card, and the
//! `training.json` of couplet's own training.
//!
//! Both are by people or other programs and are only shown: what cannot be read in them is left out.

use couplet_storage::escape::in_line;
use saphyr_parser::{Event, Parser, ScalarStyle};
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

/// The largest README.md or `training.json` that is read, in bytes.
pub const MOST_BYTES: u64 = 8 << 20;

/// The files that a card is made of.
pub const README: &str = "README.md";
/// What training left of itself.
pub const TRAINING: &str = "training.json";

/// How deep a head may be nested; real ones are at most six deep.
const DEEPEST: usize = 32;

/// How many names or measurements of one kind are shown.
const MOST: usize = 100;

/// How many characters of a text are shown.
const LONGEST: usize = 200;

/// What is known of a model besides what it is loaded from.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Card {
    /// The licence, as an SPDX name or in the author's words.
    pub licence: Option<String>,
    /// The models it was made from.
    #[serde(rename = "base_model")]
    pub base: Vec<String>,
    /// The data sets it learned from.
    pub datasets: Vec<String>,
    /// The languages it is for.
    pub languages: Vec<String>,
    /// What was measured, and on what; the names alone where the card has no values.
    pub metrics: Vec<String>,
    /// How couplet trained it.
    pub training: Option<Training>,
}

/// What `training.json` says.
#[derive(Debug, Clone, PartialEq)]
pub struct Training {
    json: Value,
}

impl Card {
    /// Reads what there is.
    #[must_use]
    pub fn read(readme: Option<&[u8]>, training: Option<&[u8]>) -> Self {
        let head = readme.map(|text| head(&String::from_utf8_lossy(text))).unwrap_or_default();
        let license = words(&head["license"]).into_iter().next();
        let own = words(&head["license_name"]).into_iter().next();
        let training = training.and_then(|text| serde_json::from_slice(text).ok()).map(|json| Training { json });
        let mut metrics = measured(&head["model-index"]);
        if metrics.is_empty() {
            metrics = words(&head["metrics"]);
        }
        Self {
            // "other" says that the name is elsewhere.
            licence: license.filter(|name| name != "other").or(own).or_else(|| words(&head["license"]).pop()),
            base: first_of(words(&head["base_model"])),
            datasets: first_of(words(&head["datasets"])),
            languages: first_of(words(&head["language"])),
            metrics: first_of(metrics),
            training,
        }
    }
}

/// What matters of it, without curves and single epochs.
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
    /// What it started from.
    #[must_use]
    pub fn base(&self) -> Option<String> {
        match &self.json["base"] {
            Value::String(base) => Some(one_line(base)),
            Value::Object(_) => Some("random weights".into()),
            _ => None,
        }
    }

    /// How it was trained, in a line: the task, the rows, the steps.
    #[must_use]
    pub fn summary(&self) -> String {
        let json = &self.json;
        let number = |value: &Value| value.as_u64().map(couplet_storage::words::grouped);
        let kind = if json["kind"] == "pretrain" {
            "pretrained by masked words".to_owned()
        } else {
            let task = json["task"].as_str();
            task.map_or("fine-tuned".into(), |task| format!("fine-tuned for {}", one_line(task)))
        };
        let parts = [
            Some(kind),
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

    /// What was measured on the rows that were held out, a line for each kind of measure.
    #[must_use]
    pub fn metrics(&self) -> Vec<String> {
        let json = &self.json;
        let named = |of: &Value| {
            let metrics = of["metrics"].as_object()?;
            let values =
                metrics.iter().filter_map(|(name, value)| Some(format!("{} {:.4}", one_line(name), value.as_f64()?)));
            Some(values.take(MOST).collect::<Vec<_>>().join(", ")).filter(|line| !line.is_empty())
        };
        let rows = json["evaluation"]["rows"].as_u64().map(couplet_storage::words::grouped);
        let rows = rows.map_or_else(String::new, |rows| format!(" on {rows} held-out rows"));
        let positive = json["evaluation"]["positive"].as_str().map(one_line);
        let positive = positive.map_or_else(String::new, |label| format!("; positive is \"{label}\""));
        let mut lines: Vec<String> =
            named(&json["evaluation"]).map(|line| format!("{line}{rows}{positive}")).into_iter().collect();
        lines.extend(named(&json["calibrated"]).map(|line| format!("calibrated: {line}")));
        for share in json["held_out"].as_array().into_iter().flatten().take(MOST) {
            let hidden = share["mask_probability"].as_f64().zip(share["after"]["perplexity"].as_f64());
            let hidden = hidden.zip(share["after"]["accuracy"].as_f64());
            lines.extend(hidden.map(|((share, perplexity), accuracy)| {
                format!("perplexity {perplexity:.2}, accuracy {accuracy:.4} on words of which {share} are hidden")
            }));
        }
        lines
    }
}

/// The values of a `model-index`: `accuracy 0.87 (glue mrpc, validation)`.
fn measured(index: &Value) -> Vec<String> {
    // A list of models, in which there is one; some leave the list out.
    let models = index.as_array().map_or(std::slice::from_ref(index), Vec::as_slice);
    let results = models.iter().filter_map(|model| model["results"].as_array()).flatten();
    let lines = results.flat_map(|result| {
        let dataset = &result["dataset"];
        let on: Vec<&str> = ["name", "split"].iter().filter_map(|key| dataset[*key].as_str()).collect();
        let on = if on.is_empty() { String::new() } else { format!(" ({})", on.join(", ")) };
        let metrics = result["metrics"].as_array().into_iter().flatten();
        metrics.filter_map(move |metric| {
            let name = metric["type"].as_str().or(metric["name"].as_str())?;
            let value = words(&metric["value"]).join(" ");
            (!value.is_empty()).then(|| one_line(&format!("{name} {value}{on}")))
        })
    });
    lines.collect()
}

/// A text, or the texts of a list; of a table, its name.
fn words(value: &Value) -> Vec<String> {
    match value {
        Value::String(text) => Some(one_line(text)).filter(|text| !text.is_empty()).into_iter().collect(),
        Value::Array(values) => values.iter().flat_map(words).collect(),
        Value::Object(table) => ["name", "type"].iter().find_map(|key| table.get(*key)).map(words).unwrap_or_default(),
        _ => Vec::new(),
    }
}

/// As many as a person reads, and how many more there are.
fn first_of(mut words: Vec<String>) -> Vec<String> {
    if words.len() > MOST {
        let more = format!("and {} more", words.len() - MOST);
        words.truncate(MOST);
        words.push(more);
    }
    words
}

/// A stranger's text, short and in one line, in which nothing moves the cursor.
fn one_line(text: &str) -> String {
    let start: String = text.trim_start().chars().take(4 * LONGEST).collect();
    let words = start.split_whitespace().collect::<Vec<_>>().join(" ");
    let shown = in_line(&words);
    match shown.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &shown[..end]),
        None => shown.into_owned(),
    }
}

/// The YAML between the first two lines of dashes; null where there is none, or where it is no YAML.
fn head(readme: &str) -> Value {
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

/// YAML as JSON. An alias is null: a few of them could stand for more than fits into memory.
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
        if open.len() > DEEPEST {
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

/// All but null is a text: a number keeps the digits that its author gave it.
fn scalar(text: &str, style: ScalarStyle) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" if style == ScalarStyle::Plain => Value::Null,
        _ => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "---
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
    fn the_head_of_a_readme_is_a_card() {
        let card = Card::read(Some(HEAD.as_bytes()), None);
        assert_eq!(card.licence.as_deref(), Some("apache-2.0"));
        assert_eq!(card.base, ["org/base"]);
        assert_eq!(card.datasets, ["glue", r"org/\u{1b}[31mown"]);
        assert_eq!(card.languages, ["en", "de"]);
        assert_eq!(card.metrics, ["accuracy 0.8725 (GLUE MRPC, validation)"]);
        let other = "---\nlicense: other\nlicense_name: my-own\nmetrics:\n- f1\n---\n";
        let card = Card::read(Some(other.as_bytes()), None);
        assert_eq!((card.licence.as_deref(), card.metrics), (Some("my-own"), vec!["f1".to_owned()]));
    }

    fn of(head: &str) -> Card {
        Card::read(Some(format!("---\n{head}\n---\n# Mine\n").as_bytes()), None)
    }

    #[test]
    fn numbers_keep_their_digits() {
        let measured = |value: &str| {
            let result = format!("model-index: [{{results: [{{metrics: [{{type: f1, value: {value}}}]}}]}}]");
            of(&result).metrics
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
    fn heads_of_odd_shapes_give_what_is_in_them() {
        assert_eq!(of("license: [mit, apache-2.0]").licence.as_deref(), Some("mit"));
        assert_eq!(of("license: {name: mine, link: x}").licence.as_deref(), Some("mine"));
        assert_eq!(of("license: other").licence.as_deref(), Some("other"));
        assert_eq!(of("license:\nlanguage: no").languages, ["no"]);
        assert_eq!(of("datasets:\n- type: glue\n  args: mrpc\n- [a, [b]]\n- null\n- ''").datasets, ["glue", "a", "b"]);
        assert_eq!(of("metrics:\n- name: f1\n  value: 0.9").metrics, ["f1"]);
        assert_eq!(of("model-index:\n  results:\n  - metrics: [{name: f1, value: 1}]").metrics, ["f1 1"]);
        assert_eq!(of("a: &a {b: c}\nd: *a\n<<: *a\n? [x, y]\n: z\nlicense: mit").licence.as_deref(), Some("mit"));
        assert_eq!(of("license: |\n  of\n  my own").licence.as_deref(), Some("of my own"));
        assert_eq!(of("license: a --- b\nx: |\n  ---\n  y").licence.as_deref(), Some("a --- b"));
        // Windows, and a mark of the order of bytes.
        let text = "\u{feff}---\r\nlicense: mit\r\n---\r\n";
        assert_eq!(Card::read(Some(text.as_bytes()), None).licence.as_deref(), Some("mit"));
    }

    #[test]
    fn what_is_too_much_is_cut() {
        let card = of(&format!("license: {}\ndatasets: [{}]", "x".repeat(1 << 20), "a, ".repeat(100_000)));
        assert_eq!(card.licence.map(|licence| licence.chars().count()), Some(LONGEST + 1));
        assert_eq!(card.datasets.len(), MOST + 1);
        assert_eq!(card.datasets.last().map(String::as_str), Some("and 99900 more"));
    }

    #[test]
    fn what_training_says_stays_in_its_line() {
        let json = br#"{"task": "x\n  licence       MIT", "couplet": "\u001b[2J", "base": "a\nb",
            "evaluation": {"metrics": {"f1\n\u009b": 0.5}}}"#;
        let training = Card::read(None, Some(json)).training.unwrap();
        assert_eq!(training.summary(), r"fine-tuned for x licence MIT, by couplet \u{1b}[2J");
        assert_eq!(training.base().as_deref(), Some("a b"));
        assert_eq!(training.metrics(), [r"f1 \u{9b} 0.5000"]);
    }

    #[test]
    fn what_is_no_card_is_left_out() {
        let deep = format!("---\nlicense: {}\n---\n", "[".repeat(100_000));
        let bomb = "---\na: &a [x, x, x, x]\nlicense: *a\n---\n";
        for text in ["", "# Mine\n", "---\n", "---\nlicense: [\n---\n", "---\n\t- :\n---", &deep, bomb] {
            assert_eq!(Card::read(Some(text.as_bytes()), Some(b"not JSON")).licence, None, "{text:.30}");
        }
        assert_eq!(Card::read(None, None), Card::default());
    }
}
