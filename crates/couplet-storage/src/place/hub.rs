//! Model URIs of a hub: `hf://org/name[@revision][/subfolder]`. Parsing does no I/O.

use std::fmt;

use super::problem::Problem;

/// The URI scheme of hub models.
pub(crate) const SCHEME: &str = "hf";

/// The form of a hub URI, for messages.
pub(crate) const FORM: &str = "hf://ORG/NAME[@REVISION][/FOLDER]";

/// The maximum length of a repository name, in bytes.
const MAX_NAME_BYTES: usize = 96;

/// A model in a repository of a hub.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HubModel {
    repository: String,
    revision: Option<String>,
    folder: String,
}

impl HubModel {
    /// Returns the repository, such as `org/name`. Old repositories have no organisation.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Returns the branch, tag or commit; `main` if none is named.
    #[must_use]
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }

    /// Returns the folder in the repository, without leading or trailing slashes; empty for the root.
    #[must_use]
    pub fn folder(&self) -> &str {
        &self.folder
    }

    /// Returns the URI with another folder of the repository.
    #[must_use]
    pub fn with_folder(&self, folder: &str) -> Self {
        Self { folder: folder.to_owned(), ..self.clone() }
    }

    /// Returns the URI with another revision.
    #[must_use]
    pub fn with_revision(&self, revision: &str) -> Self {
        Self { revision: Some(revision.to_owned()), ..self.clone() }
    }

    /// Returns true if the revision is a commit, whose files never change.
    #[must_use]
    pub fn is_pinned(&self) -> bool {
        self.revision.as_deref().is_some_and(is_commit)
    }

    /// Parses the part of a URI after `hf://`.
    pub(crate) fn parse(rest: &str) -> Result<Self, Problem> {
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let wrong = |message: String| Err(Problem::new(message, "not a model of a hub").help(format!("write {FORM}")));
        if rest.is_empty() {
            return wrong("`hf://` has no repository".into());
        }
        // A name has at most one slash. Anything after the revision, or after the name, is a folder.
        let (repository, revision, folder) = match rest.split_once('@') {
            Some((repository, after)) => {
                let (revision, folder) = split_revision(after);
                (repository, Some(revision.replace("%2F", "/").replace("%2f", "/")), folder)
            }
            None => match rest.match_indices('/').nth(1) {
                Some((end, _)) => (&rest[..end], None, &rest[end + 1..]),
                None => (rest, None, ""),
            },
        };
        if let Some((kind @ ("datasets" | "spaces" | "buckets"), _)) = repository.split_once('/') {
            return wrong(format!("`hf://{kind}/…` is not a model"));
        }
        let name = repository;
        if name.split('/').count() > 2 || name.len() > MAX_NAME_BYTES || !name.split('/').all(is_name) {
            return wrong(format!("\"{name}\" cannot be the name of a repository"));
        }
        if let Some(revision) = revision.as_deref().filter(|revision| !is_revision(revision)) {
            return wrong(format!("\"{revision}\" cannot be a revision: it is a branch, a tag or a commit"));
        }
        if !folder.is_empty() && !folder.split('/').all(is_part) {
            return wrong(format!("\"{folder}\" cannot be a folder of a repository"));
        }
        Ok(Self { repository: name.to_owned(), revision, folder: folder.to_owned() })
    }
}

impl fmt::Display for HubModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}://{}", self.repository)?;
        if let Some(revision) = &self.revision {
            let plain = split_revision(revision) == (revision, "");
            write!(f, "@{}", if plain { revision.clone() } else { revision.replace('/', "%2F") })?;
        }
        if !self.folder.is_empty() {
            write!(f, "/{}", self.folder)?;
        }
        Ok(())
    }
}

/// Splits a revision from the folder that follows it. Only the revisions of pull requests and conversions contain
/// slashes.
fn split_revision(text: &str) -> (&str, &str) {
    let slashes = if text.starts_with("refs/pr/") || text.starts_with("refs/convert/") { 2 } else { 0 };
    match text.match_indices('/').nth(slashes) {
        Some((end, _)) => (&text[..end], &text[end + 1..]),
        None => (text, ""),
    }
}

fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Returns true if a hub accepts the name for an organisation or a repository.
fn is_name(name: &str) -> bool {
    let ends = |char: char| char == '-' || char == '.';
    !name.is_empty()
        && name.chars().all(|char| char.is_ascii_alphanumeric() || "-._".contains(char))
        && !name.starts_with(ends)
        && !name.ends_with(ends)
        && !name.contains("--")
        && !name.contains("..")
}

/// Returns true if git accepts the name for a branch or a tag. It becomes a file name in the cache.
fn is_revision(revision: &str) -> bool {
    let forbidden = |char: char| char.is_whitespace() || char.is_control() || "~^:?*[\\\"'".contains(char);
    !revision.contains(forbidden) && revision.split('/').all(is_part)
}

fn is_part(part: &str) -> bool {
    !matches!(part, "" | "." | "..") && !part.contains(|char: char| char.is_control() || "\\?#".contains(char))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_names_a_repository_a_revision_and_a_folder() {
        let commit = "0123456789abcdef0123456789abcdef01234567";
        for (text, repository, revision, folder) in [
            ("org/name", "org/name", "main", ""),
            ("org/name/", "org/name", "main", ""),
            ("bert-base-uncased", "bert-base-uncased", "main", ""),
            ("bert-base-uncased@v1", "bert-base-uncased", "v1", ""),
            ("org/name@v1.0/a/b", "org/name", "v1.0", "a/b"),
            ("org/name/a", "org/name", "main", "a"),
            ("org/name@refs/pr/12/a", "org/name", "refs/pr/12", "a"),
            ("org/name@feature%2Fx/a", "org/name", "feature/x", "a"),
            (&format!("org/name@{commit}"), "org/name", commit, ""),
        ] {
            let model = HubModel::parse(text).unwrap();
            assert_eq!(
                (model.repository(), model.revision(), model.folder()),
                (repository, revision, folder),
                "{text}"
            );
            assert_eq!(HubModel::parse(model.to_string().strip_prefix("hf://").unwrap()).unwrap(), model);
            assert_eq!(model.is_pinned(), text.contains(commit));
        }
    }

    #[test]
    fn what_names_no_model_is_refused() {
        let refused = |text: &str| HubModel::parse(text).unwrap_err().message;
        assert_eq!(refused(""), "`hf://` has no repository");
        assert_eq!(refused("datasets/org/name"), "`hf://datasets/…` is not a model");
        assert_eq!(refused("org/na me"), "\"org/na me\" cannot be the name of a repository");
        assert_eq!(refused("org/.."), "\"org/..\" cannot be the name of a repository");
        assert_eq!(refused("a/b/c@v"), "\"a/b/c\" cannot be the name of a repository");
        assert_eq!(refused("org/name/../x"), "\"../x\" cannot be a folder of a repository");
        for revision in ["", "..", "a b", "..%2F..%2Fx"] {
            assert!(refused(&format!("org/name@{revision}")).ends_with("a branch, a tag or a commit"), "{revision}");
        }
    }
}
