//! Hive-style partition columns in folder names, as Hive, Spark and `DuckDB` write them:
//! `dt=2026-01-01/region=New%20York/`.

use std::borrow::Cow;

use object_store::ObjectMeta;
use object_store::path::Path;

/// The folder name that stands for NULL.
const NULL: &str = "__HIVE_DEFAULT_PARTITION__";

/// Returns the names of the folders between `root` and the file.
pub(super) fn folders<'f>(root: &Path, file: &'f Path) -> Vec<Cow<'f, str>> {
    let mut parts: Vec<Cow<'f, str>> = below(root, file).split('/').map(Cow::Borrowed).collect();
    parts.pop();
    parts
}

/// Returns the path of a file relative to `root`.
pub(super) fn below<'f>(root: &Path, file: &'f Path) -> &'f str {
    let file = file.as_ref();
    file.strip_prefix(root.as_ref()).map_or(file, |rest| rest.trim_start_matches('/'))
}

/// Returns the names of the partition columns that all files share.
///
/// # Errors
/// Two files with different partition columns.
pub(super) fn columns<'f>(root: &Path, files: &'f [ObjectMeta]) -> Result<Vec<String>, (&'f Path, &'f Path)> {
    let names = |file: &'f Path| -> Vec<String> {
        folders(root, file).iter().filter_map(|folder| Some(decoded(folder.split_once('=')?.0))).collect()
    };
    let Some(first) = files.first().map(|file| &file.location) else { return Ok(Vec::new()) };
    let expected = names(first);
    match files.iter().map(|file| &file.location).find(|file| names(file) != expected) {
        Some(other) => Err((first, other)),
        None => Ok(expected),
    }
}

/// Returns the values of the partition columns for a file; none if its folders do not match the columns.
pub(super) fn values(root: &Path, file: &Path, columns: &[String]) -> Option<Vec<Option<String>>> {
    let folders = folders(root, file);
    let mut folders = folders.iter().filter_map(|folder| folder.split_once('='));
    let values = columns.iter().map(|column| {
        let (_, value) = folders.next().filter(|(name, _)| decoded(name) == *column)?;
        Some(if value == NULL { None } else { Some(decoded(value)) })
    });
    values.collect()
}

/// Decodes percent escapes such as `%20`. Invalid escapes stay as they are.
fn decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let (mut decoded, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while at < bytes.len() {
        let digits = text
            .get(at + 1..at + 3)
            .filter(|digits| bytes[at] == b'%' && digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
        if let Some(byte) = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            decoded.push(byte);
            at += 3;
        } else {
            decoded.push(bytes[at]);
            at += 1;
        }
    }
    String::from_utf8(decoded).unwrap_or_else(|_| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_folders_are_decoded() {
        let cases = [
            ("a%20b", "a b"),
            ("a%2Fb", "a/b"),
            ("%C3%BC%2f%C3%B6", "ü/ö"),
            ("100%", "100%"),
            ("100%25", "100%"),
            ("a+b", "a+b"),
            ("k=v", "k=v"),
            ("%zz%+1%FF", "%zz%+1%FF"),
            ("München", "München"),
        ];
        for (written, value) in cases {
            assert_eq!(decoded(written), value, "{written}");
        }
        let root = Path::from("data");
        let file = Path::parse("data/dt=2026-01-01/x/region=k=v/part.parquet").unwrap();
        let names = ["dt".to_owned(), "region".to_owned()];
        assert_eq!(values(&root, &file, &names), Some(vec![Some("2026-01-01".into()), Some("k=v".into())]));
        assert_eq!(values(&root, &file, &names[1..]), None);
        let file = Path::parse("data/dt=__HIVE_DEFAULT_PARTITION__/part.parquet").unwrap();
        assert_eq!(values(&root, &file, &names[..1]), Some(vec![None]));
    }
}
