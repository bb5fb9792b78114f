//! Settings of the hub from the environment, under the names that `huggingface_hub` uses.

use std::env;
use std::io::IsTerminal;
use std::path::PathBuf;

use hf_hub::Cache;

use crate::files::{self, MAX_TEXT};
use crate::objects::{ObjectsError, Trouble, without_secrets};
use crate::place::{HubModel, Place};

/// The variable that disables all requests to the hub.
pub(super) const OFFLINE: &str = "HF_HUB_OFFLINE";

/// The default endpoint.
const ENDPOINT: &str = "https://huggingface.co";

/// Settings of a hub and its cache.
pub(super) struct Settings {
    pub(super) endpoint: String,
    pub(super) cache: Cache,
    pub(super) token: Option<String>,
    pub(super) offline: bool,
    /// True if stderr shows a progress bar.
    pub(super) bar: bool,
}

impl Settings {
    /// Reads the environment and the token file.
    pub(super) fn from_env(model: &HubModel) -> Result<Self, ObjectsError> {
        let wrong = |problem: String| ObjectsError::new(&Place::Hub(model.clone()), Trouble::Settings, problem);
        let default_home = || {
            let cache = path("XDG_CACHE_HOME").or_else(|| Some(dirs::home_dir()?.join(".cache")))?;
            Some(cache.join("huggingface"))
        };
        let no_home = || wrong("there is no folder for the hub's cache; set HOME, or HF_HOME to a folder".into());
        let home = path("HF_HOME").or_else(default_home).ok_or_else(no_home)?;
        let cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE")).unwrap_or_else(|| home.join("hub"));
        let cache = std::path::absolute(&cache).map_err(|e| wrong(format!("{}: {e}", cache.display())))?;
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.into());
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        if !endpoint.starts_with("http://") && !endpoint.starts_with("https://") {
            let shown = without_secrets(&endpoint);
            return Err(wrong(format!("HF_ENDPOINT is {shown}, which is not a URL such as {ENDPOINT}")));
        }
        let token_file = path("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
        let from_variable = || text("HF_TOKEN").or_else(|| text("HUGGING_FACE_HUB_TOKEN"));
        let from_file = || {
            let read = files::read_string(&token_file, MAX_TEXT).ok()?;
            Some(read.trim().to_owned()).filter(|token| !token.is_empty())
        };
        // `huggingface_hub` calls tokens of the environment and of the file implicit.
        let token = if is_true("HF_HUB_DISABLE_IMPLICIT_TOKEN") { None } else { from_variable().or_else(from_file) };
        if token.as_deref().is_some_and(|token| !token.bytes().all(|byte| byte.is_ascii_graphic())) {
            return Err(wrong("the token in HF_TOKEN or its file has characters that no token contains".into()));
        }
        Ok(Self {
            endpoint,
            cache: Cache::new(cache),
            token,
            offline: is_true(OFFLINE) || is_true("TRANSFORMERS_OFFLINE"),
            bar: std::io::stderr().is_terminal() && !is_true("HF_HUB_DISABLE_PROGRESS_BARS"),
        })
    }

    /// Returns the endpoint without secrets.
    pub(super) fn shown_endpoint(&self) -> String {
        without_secrets(&self.endpoint)
    }
}

/// Returns the value of a variable, trimmed; none if it is unset or empty.
fn text(name: &str) -> Option<String> {
    env::var(name).ok().map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
}

/// Returns the path in a variable, with `~` and other variables expanded.
fn path(name: &str) -> Option<PathBuf> {
    let value = env::var_os(name).filter(|value| !value.is_empty())?;
    let path = match value.into_string() {
        Ok(text) => PathBuf::from(expanded(&text, |name| env::var(name).ok())),
        Err(bytes) => PathBuf::from(bytes),
    };
    match (path.strip_prefix("~"), dirs::home_dir()) {
        (Ok(below), Some(home)) => Some(home.join(below)),
        _ => Some(path),
    }
}

/// Expands `$NAME` and `${NAME}` like Python's `os.path.expandvars`: references to unset variables stay.
fn expanded(text: &str, value: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, tail)) = rest.split_once('$') {
        out.push_str(before);
        let (name, after) = match tail.strip_prefix('{').and_then(|inner| inner.split_once('}')) {
            Some(found) => found,
            None => tail.split_at(tail.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(tail.len())),
        };
        let written = &tail[..tail.len() - after.len()];
        match value(name) {
            Some(value) => out.push_str(&value),
            None => out.extend(["$", written]),
        }
        rest = after;
    }
    out + rest
}

fn is_true(name: &str) -> bool {
    text(name).is_some_and(|value| matches!(value.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE"))
}

#[cfg(test)]
mod tests {
    use super::expanded;

    #[test]
    fn variables_in_paths_are_those_of_the_environment() {
        let value = |name: &str| (name == "SCRATCH").then(|| "/scratch/me".to_owned());
        for (text, path) in [
            ("$SCRATCH/hf", "/scratch/me/hf"),
            ("/a/${SCRATCH}b", "/a//scratch/meb"),
            ("$NONE/${NONE}/$", "$NONE/${NONE}/$"),
            ("${SCRATCH", "${SCRATCH"),
            ("/plain", "/plain"),
        ] {
            assert_eq!(expanded(text, value), path);
        }
    }
}
