//! `couplet init`: a new pipeline that runs as it is, with sample data, or over a file that is looked at.
//!
//! A project goes into a folder of its own that is new or empty. Every file is made if it is not there; none is ever
//! replaced.

mod guess;
mod look;
mod written;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use crate::config;
use crate::error::Error;
use crate::files::nearest_file;

pub use guess::{Guess, Wanted};
pub use look::{Looked, look};
pub use written::{pipeline_over, quoted};

/// The model that a new pipeline names where no other is given or found.
const MODEL_OF_THE_HUB: &str = "hf://Intel/bert-base-uncased-mrpc";

/// Where a clone of couplet has its model.
const BUNDLED: &str = "pipelines/quickstart/model";

const PIPELINE: &str = include_str!("sample/pipeline.toml");
const QUERY: &str = include_str!("sample/pairs.sql");
const PAIRS: &str = include_str!("sample/pairs.csv");
const IGNORED: &str = include_str!("sample/gitignore");
const README: &str = include_str!("sample/README.md");

/// A model for a new pipeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelChoice {
    /// What the pipeline says.
    pub uri: String,
    /// Why this one, for people.
    pub why: String,
    /// Whether it is on this machine already.
    pub here: bool,
}

/// Chooses the model of a pipeline in `folder`: the one that is asked for, the one of a clone that the program or the
/// current folder is in, or one of the hub.
///
/// # Errors
/// A model on this machine that is no folder of a model.
pub fn choose_model(asked: Option<&str>, folder: &Path) -> Result<ModelChoice, Error> {
    if let Some(uri) = asked {
        let place = config::model_place(uri);
        // What has a scheme that is not known here is the pipeline's to judge.
        let Some(path) = place.as_ref().ok().and_then(config::Place::local) else {
            return Ok(ModelChoice { uri: uri.to_owned(), why: "as asked for".into(), here: false });
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
        return Ok(ModelChoice { uri: relative(folder, path), why: "as asked for".into(), here: true });
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
            uri: MODEL_OF_THE_HUB.into(),
            why:
                "a model for paraphrases from the Hugging Face hub, downloaded by the first run; --model names another"
                    .into(),
            here: false,
        },
    })
}

/// A file of a new project, by its path in the project's folder.
pub type NewFile = (&'static str, String);

/// The files of a project with sample pairs.
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

/// The files of a project over a table that was looked at.
#[must_use]
pub fn over(pipeline: String) -> Vec<NewFile> {
    vec![("pipeline.toml", pipeline), (".gitignore", IGNORED.to_owned())]
}

/// Writes a project.
///
/// # Errors
/// A folder that is there and not empty; files that cannot be made; a pipeline that couplet itself refuses.
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

/// Refuses a folder in which something could be overwritten.
///
/// # Errors
/// It is a file, or not empty.
pub fn check_folder(folder: &Path) -> Result<(), Error> {
    let refused = |problem: &str| {
        Err(Error::Usage(format!("{} {problem}; name a folder that is new or empty", folder.display())))
    };
    match folder.read_dir() {
        Ok(mut entries) => match entries.next() {
            Some(_) => refused("is not empty, and nothing in it is to be overwritten"),
            None => Ok(()),
        },
        Err(_) if folder.exists() => refused("is there and is not a folder that can be read"),
        Err(_) => Ok(()),
    }
}

/// A name for a pipeline in this folder.
#[must_use]
pub fn name_of(folder: &Path) -> String {
    let absolute = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    let name = absolute.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let name: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '-' }).collect();
    match name.trim_matches('-') {
        // Tables of the pipeline have these names.
        "" | "pairs" | "data" => "my-job".to_owned(),
        name => name.to_owned(),
    }
}

/// A path as a file in `folder` would write it.
fn relative(folder: &Path, path: &Path) -> String {
    let resolved = |path: &Path| {
        let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        // The folder itself may not be there yet.
        let there = absolute.ancestors().find(|above| above.exists()).unwrap_or(Path::new("/"));
        let rest = absolute.strip_prefix(there).unwrap_or(Path::new(""));
        let there = there.canonicalize().unwrap_or_else(|_| there.to_owned());
        // Joining nothing would add a slash, and make a folder of a file.
        if rest.as_os_str().is_empty() { there } else { there.join(rest) }
    };
    let (folder, resolved) = (resolved(folder), resolved(path));
    let common = folder.components().zip(resolved.components()).take_while(|(a, b)| a == b).count();
    // From another branch of the disk the whole path is clearer.
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

/// The URI of a table as a pipeline in `folder` would write it.
#[must_use]
pub fn table_uri(folder: &Path, uri: &str) -> String {
    match config::table_place(uri) {
        Ok(config::Place::Local(path)) => relative(folder, &path),
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
