//! `couplet init`: creates a pipeline that can run at once, with sample data or over an inspected file.
//!
//! A project gets its own folder, which must be new or empty. No file is ever overwritten.

mod guess;
mod look;
mod written;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use couplet_storage::files::nearest_file;
use couplet_storage::place;

use crate::config;
use crate::error::Error;

pub use guess::{Guess, Wanted};
pub use look::{InspectedTable, look};
pub use written::{pipeline_over, quoted};

/// The model of a new pipeline if no other is given or found.
const HUB_MODEL: &str = "hf://Intel/bert-base-uncased-mrpc";

/// The path of the bundled model within a clone of couplet.
const BUNDLED: &str = "pipelines/quickstart/model";

const PIPELINE: &str = include_str!("sample/pipeline.toml");
const QUERY: &str = include_str!("sample/pairs.sql");
const PAIRS: &str = include_str!("sample/pairs.csv");
const IGNORED: &str = include_str!("sample/gitignore");
const README: &str = include_str!("sample/README.md");

/// A model for a new pipeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelChoice {
    /// The URI in the pipeline file.
    pub uri: String,
    /// The reason for the choice, shown to the user.
    pub why: String,
    /// True if the model is on the local disk.
    pub here: bool,
}

/// Chooses the model of a pipeline in `folder`: the requested one, or the bundled one of a clone that contains the
/// program or the current folder, or else one from the hub.
///
/// # Errors
/// A local path that is not a model folder.
pub fn choose_model(requested: Option<&str>, folder: &Path) -> Result<ModelChoice, Error> {
    if let Some(uri) = requested {
        let place = place::model_place(uri);
        // A URI with a scheme that is unknown here is checked when the pipeline is loaded.
        let Some(path) = place.as_ref().ok().and_then(place::Place::local) else {
            return Ok(ModelChoice { uri: uri.to_owned(), why: "as requested".into(), here: false });
        };
        if !path.exists() {
            let near = nearest_file(path);
            return Err(Error::Usage(format!("--model {uri}: {} does not exist{near}", path.display())));
        }
        if !path.join("config.json").is_file() {
            return Err(Error::Usage(format!(
                "--model {uri}: {} is not the folder of a model; it has no config.json",
                path.display()
            )));
        }
        return Ok(ModelChoice { uri: relative(folder, path), why: "as requested".into(), here: true });
    }
    let starts = [std::env::current_dir().ok(), std::env::current_exe().ok()];
    let found = starts.iter().flatten().flat_map(|start| start.ancestors()).map(|above| above.join(BUNDLED));
    Ok(match found.into_iter().find(|model| model.join("config.json").is_file()) {
        Some(model) => ModelChoice {
            uri: relative(folder, &model),
            why: "the model of the quickstart, for paraphrases; not for commercial use".into(),
            here: true,
        },
        None => ModelChoice {
            uri: HUB_MODEL.into(),
            why:
                "a model for paraphrases from the Hugging Face hub, downloaded by the first run; --model names another"
                    .into(),
            here: false,
        },
    })
}

/// A file of a new project: its path relative to the project's folder, and its contents.
pub type NewFile = (&'static str, String);

/// Returns the files of a project with sample pairs.
#[must_use]
pub fn sample(name: &str, model: &ModelChoice) -> Vec<NewFile> {
    let model = written::with_comment(&format!("uri = {}", quoted(&written::doubled(&model.uri))), &model.why);
    let pipeline = PIPELINE.replace("name = @NAME@ ", &format!("name = {} ", quoted(name))).replace("@MODEL@", &model);
    vec![
        ("pipeline.toml", pipeline),
        ("pairs.sql", QUERY.to_owned()),
        ("pairs.csv", PAIRS.to_owned()),
        ("README.md", README.replace("@NAME@", name)),
        (".gitignore", IGNORED.to_owned()),
    ]
}

/// Returns the files of a project over an inspected table.
#[must_use]
pub fn over(pipeline: String) -> Vec<NewFile> {
    vec![("pipeline.toml", pipeline), (".gitignore", IGNORED.to_owned())]
}

/// Writes the files of a project.
///
/// # Errors
/// A folder that exists and is not empty, files that cannot be created, a pipeline that couplet itself rejects.
pub fn write(folder: &Path, files: &[NewFile]) -> Result<Vec<PathBuf>, Error> {
    check_folder(folder)?;
    let pipeline = folder.join("pipeline.toml");
    if let Some((_, text)) = files.iter().find(|(name, _)| *name == "pipeline.toml") {
        config::parse(&pipeline, text, &BTreeMap::new()).map_err(|errors| Error::Config(Box::new(errors)))?;
    }
    let failed = |path: &Path, error| Error::Io { context: format!("cannot write {}", path.display()), error };
    fs::create_dir_all(folder).map_err(|e| failed(folder, e))?;
    let mut written = Vec::new();
    for (name, text) in files {
        let path = folder.join(name);
        let file = fs::File::create_new(&path);
        file.and_then(|mut file| file.write_all(text.as_bytes())).map_err(|e| failed(&path, e))?;
        written.push(path);
    }
    Ok(written)
}

/// Rejects a folder in which something could be overwritten.
///
/// # Errors
/// A path that is a file, or a folder that is not empty.
pub fn check_folder(folder: &Path) -> Result<(), Error> {
    let refused = |problem: &str| {
        Err(Error::Usage(format!("{} {problem}; name a folder that is new or empty", folder.display())))
    };
    match folder.read_dir() {
        Ok(mut entries) => match entries.next() {
            Some(_) => refused("is not empty, and couplet init overwrites nothing"),
            None => Ok(()),
        },
        Err(_) if folder.exists() => refused("exists and is not a readable folder"),
        Err(_) => Ok(()),
    }
}

/// Derives a pipeline name from a folder.
#[must_use]
pub fn name_of(folder: &Path) -> String {
    let absolute = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    let name = absolute.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let name: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '-' }).collect();
    match name.trim_matches('-') {
        // The pipeline's tables use the names `pairs` and `data`.
        "" | "pairs" | "data" => "my-job".to_owned(),
        name => name.to_owned(),
    }
}

/// Returns a path relative to `folder`, for use in a file there.
fn relative(folder: &Path, path: &Path) -> String {
    let resolved = |path: &Path| {
        let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        // The folder itself may not exist yet.
        let there = absolute.ancestors().find(|above| above.exists()).unwrap_or(Path::new("/"));
        let rest = absolute.strip_prefix(there).unwrap_or(Path::new(""));
        let there = there.canonicalize().unwrap_or_else(|_| there.to_owned());
        // Joining an empty path would add a slash and turn a file into a folder.
        if rest.as_os_str().is_empty() { there } else { there.join(rest) }
    };
    let (folder, resolved) = (resolved(folder), resolved(path));
    let common = folder.components().zip(resolved.components()).take_while(|(a, b)| a == b).count();
    // Without a common parent folder, the absolute path is clearer.
    if common <= 1 {
        return resolved.display().to_string();
    }
    let up = folder.components().skip(common).map(|_| "..");
    let down = resolved.components().skip(common);
    let parts = up.map(PathBuf::from).chain(down.map(|part| PathBuf::from(part.as_os_str())));
    let relative = parts.collect::<PathBuf>();
    let slash = if path.as_os_str().as_encoded_bytes().ends_with(b"/") { "/" } else { "" };
    format!("{}{slash}", relative.display())
}

/// Returns the URI of a table relative to a pipeline in `folder`.
#[must_use]
pub fn table_uri(folder: &Path, uri: &str) -> String {
    match place::table_place(uri) {
        Ok(place::Place::Local(path)) => relative(folder, &path),
        _ => uri.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_without_a_common_folder_stay_absolute() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().canonicalize().unwrap();
        assert_eq!(relative(Path::new("/nowhere/job"), &path), path.display().to_string());
        assert_eq!(relative(&path.with_file_name("job"), &path), format!("../{}", path.file_name().unwrap().display()));
    }
}
