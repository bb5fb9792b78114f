//! Guesses the roles of a table's columns by name, type and contents, with a reason for each.

use couplet_storage::words::{closest, grouped};

use super::look::{Column, InspectedTable};
use crate::error::Error;

/// Column names of text pairs in well-known data sets.
const PAIRS: [(&str, &str); 16] = [
    ("sentence1", "sentence2"),
    ("sentence_1", "sentence_2"),
    ("question1", "question2"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("sentence_a", "sentence_b"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("question", "answer"),
    ("question", "context"),
    ("query", "passage"),
    ("query", "document"),
    ("anchor", "positive"),
    ("text", "text_pair"),
    ("source", "target"),
    ("title", "body"),
];

/// Common column names of single texts.
const TEXTS: [&str; 12] = [
    "text",
    "sentence",
    "review",
    "comment",
    "tweet",
    "content",
    "body",
    "document",
    "message",
    "question",
    "title",
    "description",
];

/// Common column names of labels.
const LABELS: [&str; 14] = [
    "label",
    "labels",
    "gold",
    "gold_label",
    "target",
    "class",
    "quality",
    "is_duplicate",
    "sentiment",
    "similarity",
    "rating",
    "stars",
    "category",
    "score",
];

/// The minimum mean number of words for a column to count as text, if its name does not show it.
const MIN_WORDS_OF_TEXT: f64 = 3.0;

/// The maximum number of distinct labels, if the column's name does not show that it has labels.
const MAX_LABELS: usize = 20;

/// Roles that the user has set instead of leaving them to be guessed.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// The columns that identify a row.
    pub id: Vec<String>,
    /// One or two text columns.
    pub text: Vec<String>,
    /// The label column.
    pub label: Option<String>,
    /// True if no column has labels.
    pub no_label: bool,
}

/// The guessed roles of columns, with reasons.
#[derive(Debug, Clone)]
pub struct Guess {
    /// The columns that together identify each row; empty if there are none.
    pub id: Vec<String>,
    /// The reason for the id.
    pub why_id: String,
    /// One or two text columns.
    pub text: Vec<String>,
    /// The reason for the text columns.
    pub why_text: String,
    /// The label column.
    pub label: Option<String>,
    /// The reason for the label column or for its absence.
    pub why_label: String,
}

impl Guess {
    /// Guesses the roles that `wanted` leaves open.
    ///
    /// # Errors
    /// Columns that do not exist, a table without text columns, a requested id that is not unique.
    pub async fn new(table: &InspectedTable, wanted: &Wanted) -> Result<Self, Error> {
        let names = || table.columns.iter().map(|column| column.name.as_str());
        let requested = [("--id", &wanted.id), ("--text", &wanted.text)].into_iter();
        let requested = requested.flat_map(|(option, names)| names.iter().map(move |name| (option, name)));
        for (option, name) in requested.chain(wanted.label.iter().map(|name| ("--label", name))) {
            if !names().any(|column| column == name) {
                let near = closest(name, names()).map_or_else(String::new, |near| format!("; did you mean `{near}`?"));
                let all = names().collect::<Vec<_>>().join(", ");
                return Err(Error::Usage(format!("{option} {name}: there is no such column (columns: {all}){near}")));
            }
        }
        for (option, names) in [("--id", &wanted.id), ("--text", &wanted.text)] {
            let twice = names.iter().enumerate().find(|(i, name)| names[..*i].contains(name));
            if let Some((_, name)) = twice {
                return Err(Error::Usage(format!("{option} {}: `{name}` is given twice", names.join(","))));
            }
        }
        let (text, why_text) = texts(table, wanted)?;
        let (label, why_label) = label(table, wanted, &text);
        let (id, why_id) = id(table, wanted, &text, label.as_deref()).await?;
        Ok(Self { id, why_id, text, why_text, label, why_label })
    }
}

fn texts(table: &InspectedTable, wanted: &Wanted) -> Result<(Vec<String>, String), Error> {
    match wanted.text.len() {
        0 => {}
        1 | 2 => return Ok((wanted.text.clone(), "as requested".into())),
        n => return Err(Error::Usage(format!("--text names {n} columns; name one, or two for pairs"))),
    }
    let strings = || {
        let taken = |column: &&Column| wanted.id.contains(&column.name) || wanted.label.as_ref() == Some(&column.name);
        let strings = table.columns.iter().filter(|column| column.is_text() && !table.is_own(column));
        strings.filter(move |column| !taken(column))
    };
    let named = |name: &str| strings().find(|column| plain(&column.name) == name);
    for (first, second) in PAIRS {
        if let (Some(first), Some(second)) = (named(first), named(second)) {
            let why = format!("a pair by their names; {:.0} and {:.0} words on average", first.words, second.words);
            return Ok((vec![first.name.clone(), second.name.clone()], why));
        }
    }
    let mut long: Vec<&Column> = strings().filter(|column| column.words >= MIN_WORDS_OF_TEXT).collect();
    if let [first, second] = long[..]
        && (stem(&first.name) == stem(&second.name)
            || first.words.max(second.words) < 2.0 * first.words.min(second.words))
    {
        let why = format!(
            "the only columns of texts; {:.0} and {:.0} words on average, so a pair",
            first.words, second.words
        );
        return Ok((vec![first.name.clone(), second.name.clone()], why));
    }
    if let Some(column) = TEXTS.into_iter().find_map(named) {
        let why = format!("by its name; {:.0} words on average", column.words);
        return Ok((vec![column.name.clone()], why));
    }
    long.sort_by(|a, b| b.words.total_cmp(&a.words));
    if let Some(longest) = long.first() {
        let why = format!("the longest texts; {:.0} words on average", longest.words);
        return Ok((vec![longest.name.clone()], why));
    }
    if table.rows == 0 {
        return Err(Error::Usage("the data has no rows to find the text columns by; name them with --text".into()));
    }
    let all = table.columns.iter().map(|column| format!("{} {}", column.name, column.data_type));
    Err(Error::Usage(format!(
        "no column looks like text ({}); name one or two with --text",
        all.collect::<Vec<_>>().join(", ")
    )))
}

fn label(table: &InspectedTable, wanted: &Wanted, text: &[String]) -> (Option<String>, String) {
    if let Some(label) = &wanted.label {
        return (Some(label.clone()), "as requested".into());
    }
    if wanted.no_label {
        return (None, "as requested".into());
    }
    let is_taken = |column: &Column| text.contains(&column.name) || wanted.id.contains(&column.name);
    let free = || table.columns.iter().filter(|column| !is_taken(column) && !table.is_own(column));
    let values = |column: &Column| match column.distinct {
        1 => "1 value".to_owned(),
        n => format!("{} different values", grouped(n as u64)),
    };
    let is_label = |column: &&Column| column.filled > 0 && column.words < 6.0;
    if let Some(column) = LABELS.into_iter().find_map(|name| free().find(|c| plain(&c.name) == name).filter(is_label)) {
        return (Some(column.name.clone()), format!("by its name; {}", values(column)));
    }
    let few = |column: &&Column| {
        let most = if column.data_type.is_floating() { column.filled / 10 } else { MAX_LABELS };
        column.distinct >= 2 && column.distinct <= most && column.distinct * 10 <= column.filled
    };
    let mut candidates = free().filter(few).filter(is_label).filter(|column| !names_rows(&column.name));
    match (candidates.next(), candidates.next()) {
        (Some(only), None) => {
            (Some(only.name.clone()), format!("the only other column with few different values: {}", values(only)))
        }
        (None, _) => (None, "no column looks like labels; --label names one".into()),
        (Some(a), Some(b)) => {
            (None, format!("`{}` and `{}`, at least, could be labels; --label names one", a.name, b.name))
        }
    }
}

async fn id(
    table: &InspectedTable,
    wanted: &Wanted,
    text: &[String],
    label: Option<&str>,
) -> Result<(Vec<String>, String), Error> {
    let rows = grouped(table.rows);
    if !wanted.id.is_empty() {
        let names: Vec<&str> = wanted.id.iter().map(String::as_str).collect();
        if !table.is_unique(&names).await? {
            return Err(Error::Usage(format!(
                "--id {}: some of the {rows} rows have no value there, or the same value as another row; name columns \
                 that identify each row, or omit --id",
                names.join(",")
            )));
        }
        return Ok((wanted.id.clone(), "as requested; unique in all rows".into()));
    }
    let is_free =
        |column: &&Column| !text.contains(&column.name) && label != Some(&column.name) && !table.is_own(column);
    let is_code = |column: &&Column| {
        let data_type = &column.data_type;
        column.is_text() || data_type.is_integer() || data_type.is_decimal() || data_type.is_binary()
    };
    // A column with the name of an id may have any type that is not nested.
    let named = || {
        let named = table.columns.iter().filter(is_free).filter(|column| names_rows(&column.name));
        named.filter(|column| !column.data_type.is_nested() && !column.data_type.is_null())
    };
    for column in named().filter(|column| column.distinct == table.sampled) {
        if table.is_unique(&[&column.name]).await? {
            let why = format!("by its name; unique in all {rows} rows");
            return Ok((vec![column.name.clone()], why));
        }
    }
    let columns: Vec<&str> = named().map(|column| column.name.as_str()).collect();
    if columns.len() > 1 && table.is_unique(&columns).await? {
        let why = format!("by their names; only together unique in all {rows} rows");
        return Ok((columns.into_iter().map(str::to_owned).collect(), why));
    }
    let others = table.columns.iter().filter(is_free).filter(is_code).filter(|column| !names_rows(&column.name));
    for column in others.filter(|column| column.distinct == table.sampled && column.words < MIN_WORDS_OF_TEXT) {
        if table.is_unique(&[&column.name]).await? {
            let why = format!("unique in all {rows} rows");
            return Ok((vec![column.name.clone()], why));
        }
    }
    let why = "no column that looks like an id is unique, so rows are numbered in the order of the files, with \
               row_number()";
    Ok((Vec::new(), why.into()))
}

/// Normalizes a name: lower case, with runs of other characters than letters and digits replaced by `_`.
pub(super) fn plain(name: &str) -> String {
    let mut plain = String::new();
    for char in name.trim_start_matches('\u{feff}').chars() {
        match char {
            char if char.is_alphanumeric() => plain.extend(char.to_lowercase()),
            _ if plain.ends_with('_') || plain.is_empty() => {}
            _ => plain.push('_'),
        }
    }
    plain.trim_end_matches('_').to_owned()
}

/// Returns the name without the part that distinguishes the two columns of a pair.
fn stem(name: &str) -> String {
    let plain = plain(name);
    let stem = plain.trim_matches(|c: char| c.is_ascii_digit() || c == '_');
    stem.trim_end_matches("_a").trim_end_matches("_b").to_owned()
}

/// Returns true if a name is typical of id columns.
fn names_rows(name: &str) -> bool {
    let plain = plain(name);
    let exact = ["id", "idx", "index", "key", "uuid", "guid", "rowid", "row_id", "nr", "number"];
    exact.contains(&plain.as_str()) || ["_id", "_idx", "_key", "_uuid"].iter().any(|end| plain.ends_with(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_compared_in_normalized_form() {
        assert_eq!([plain("#1 String"), plain("\u{feff}Quality"), plain("Text A")], ["1_string", "quality", "text_a"]);
        assert_eq!(stem("#1 String"), stem("#2 String"));
        assert_eq!(stem("text_a"), stem("text_b"));
        assert!(names_rows("#1 ID") && names_rows("pair_id") && names_rows("Id") && !names_rows("paid"));
    }
}
