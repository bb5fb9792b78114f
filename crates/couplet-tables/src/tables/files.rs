//! Resolves a table's location (a file, a folder or a glob; local or in a bucket) to the list of files to read.

use std::path::Path;
use std::sync::Arc;

use arrow::datatypes::TimeUnit;
use couplet_storage::files::{nearest_file, not_replaced};
use couplet_storage::objects::{Objects, ObjectsError, Trouble, cause_in, download};
use couplet_storage::place::{Place, Remote};
use couplet_storage::words::closest;
use datafusion::common::DataFusionError;
use datafusion::datasource::listing::ListingTableUrl;
use datafusion::datasource::physical_plan::parquet::metadata::DFParquetMetadata;
use datafusion::execution::SessionState;
use datafusion::execution::cache::cache_manager::FileMetadataCache;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::execution::runtime_env::RuntimeEnv;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path as Key;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt as _};

use super::Problem;
use super::SourceFile;
use super::arrow_lengths;
use super::diagnose::{self, Broken};
use super::format::{ending, endings, file_format, format_of_name, other_endings};
use super::hive;
use super::skipped_files::SkippedFiles;
use super::{Table, TableFormat};
use crate::types::FileSchema;

/// The maximum size in bytes of a file in a bucket that is downloaded only to locate damage.
const MAX_BYTES_TO_DIAGNOSE: u64 = 1 << 30;

/// The number of footers, file heads and metadata requests that are read concurrently.
pub(super) const CONCURRENT_READS: usize = 32;

/// Reads the schema of a Parquet file.
pub(super) async fn parquet_schema(
    footers: &Arc<FileMetadataCache>,
    store: &Arc<dyn ObjectStore>,
    meta: &ObjectMeta,
    place: String,
) -> Result<FileSchema, DataFusionError> {
    let footer = DFParquetMetadata::new(store.as_ref(), meta)
        .with_file_metadata_cache(Some(Arc::clone(footers)))
        .with_coerce_int96(Some(TimeUnit::Microsecond));
    let schema = Arc::new(footer.fetch_schema().await?);
    Ok(FileSchema { place, schema, footer: Some(footer.fetch_metadata().await?) })
}

/// The files of a table in reading order.
pub(super) struct Files {
    pub(super) objects: Objects,
    /// The URL of their object store in the session.
    pub(super) store: ObjectStoreUrl,
    /// The listed folder, or the single file.
    pub(super) root: Key,
    pub(super) list: Vec<ObjectMeta>,
    /// Files in the folder that are not part of the table.
    pub(super) skipped: SkippedFiles,
}

/// Opens the store of a location through the session, which may pin file versions, and registers it in the session.
fn open(runtime: &RuntimeEnv, place: &Place) -> Result<(Objects, ObjectStoreUrl), Problem> {
    let mut objects = Objects::open(place)?;
    let store = match place {
        Place::Local(_) => ObjectStoreUrl::local_filesystem(),
        Place::Remote(remote) => {
            let url = remote.session_url();
            runtime.register_object_store(&url, Arc::clone(&objects.store));
            ObjectStoreUrl::parse(&url[..url::Position::BeforePath]).map_err(|e| e.to_string())?
        }
        Place::Hub(_) => return Err(format!("{place} is a model, not a table").into()),
    };
    objects.store = runtime.object_store(&store).map_err(|e| e.to_string())?;
    Ok((objects, store))
}

/// The resolved meaning of a location.
enum Resolved {
    File(ObjectMeta),
    /// A folder, with the pattern that file names must match, if there is one.
    Folder(Key, Option<ListingTableUrl>),
}

impl Files {
    /// Finds the files of a table, at least one, and registers their store in the session.
    pub(super) async fn find(runtime: &RuntimeEnv, table: &Table) -> Result<Self, Problem> {
        let place = &table.location.place;
        let (objects, store) = open(runtime, place)?;
        let named = match place {
            Place::Remote(remote) => in_bucket(remote, &objects).await?,
            _ => local(place.local().unwrap_or(Path::new("")), table, &objects).await?,
        };
        let (root, mut list, skipped) = match named {
            Resolved::File(file) => (file.location.clone(), vec![file], SkippedFiles::default()),
            Resolved::Folder(root, pattern) => {
                let listed = match pattern {
                    None => objects.store.list(Some(&root)).try_collect().await,
                    Some(_) => objects.store.list_with_delimiter(Some(&root)).await.map(|found| found.objects),
                };
                let listed: Vec<ObjectMeta> = listed.map_err(|e| Problem::from(objects.error(&e)))?;
                let (list, mut skipped) = select_files(listed, &root, table, pattern.as_ref());
                if let Place::Local(_) = place {
                    skipped.find_dangling_links(Path::new(&format!("/{root}")), pattern.is_none());
                }
                if list.is_empty() {
                    return Err(no_files_message(place, &table.format, pattern.is_some(), &skipped).into());
                }
                (root, list, skipped)
            }
        };
        let shown = |meta: &ObjectMeta| objects.place_of(&meta.location);
        // DataFusion skips empty files silently. An empty text file is valid.
        let is_binary = matches!(table.format, TableFormat::Parquet | TableFormat::Arrow);
        if let Some(empty) = list.iter().find(|meta| is_binary && meta.size == 0) {
            return Err(format!("{} is empty; was it cut off while it was written or copied?", shown(empty)).into());
        }
        let has_header = matches!(&table.format, TableFormat::Csv(options) if options.header);
        if has_header && list.iter().all(|meta| meta.size == 0) {
            return Err(format!("{} is empty; its first line would name the columns", shown(&list[0])).into());
        }
        list.sort_by(|a, b| a.location.cmp(&b.location));
        Ok(Self { objects, store, root, list, skipped })
    }

    /// Looks up the files at these paths, all of which must exist.
    pub(super) async fn named(runtime: &RuntimeEnv, place: &Place, paths: &[Key]) -> Result<Self, Problem> {
        let (objects, store) = open(runtime, place)?;
        let heads = paths.iter().map(|path| async {
            objects.store.head(path).await.map_err(|e| Problem::from(objects.error_at(path, &e)))
        });
        let list = futures::stream::iter(heads.collect::<Vec<_>>()).buffered(CONCURRENT_READS).try_collect().await?;
        Ok(Self { root: objects.root.clone(), objects, store, list, skipped: SkippedFiles::default() })
    }

    /// Describes the current size, tag and modification time of each file.
    pub(super) fn describe_all(&self) -> impl Iterator<Item = SourceFile> {
        self.list.iter().map(|meta| SourceFile {
            url: self.objects.place_of(&meta.location).to_string(),
            bytes: meta.size,
            etag: meta.e_tag.clone(),
            modified: meta.last_modified,
        })
    }

    /// Reads the schema of each file.
    pub(super) async fn schemas(
        &self,
        state: &SessionState,
        format: &TableFormat,
    ) -> Result<Vec<FileSchema>, DataFusionError> {
        let (store, list) = (&self.objects.store, &self.list);
        let footers = &state.runtime_env().cache_manager.get_file_metadata_cache();
        let format = (*format != TableFormat::Parquet).then(|| file_format(format));
        let read = list.iter().map(|meta| {
            let format = format.clone();
            async move {
                let place = self.objects.place_of(&meta.location).to_string();
                match format {
                    None => parquet_schema(footers, store, meta, place).await,
                    Some(format) => {
                        let schema = format.infer_schema(state, store, std::slice::from_ref(meta)).await?;
                        Ok(FileSchema { place, schema, footer: None })
                    }
                }
            }
        });
        futures::stream::iter(read.collect::<Vec<_>>()).buffered(CONCURRENT_READS).try_collect().await
    }

    /// Turns a `DataFusion` error from reading the files into a problem of the table.
    pub(super) fn describe(&self, error: &DataFusionError, table: &Table) -> Problem {
        match cause_in(error) {
            Some(cause) if self.objects.place.remote().is_some() => self.objects.error(cause).into(),
            _ => {
                let text = format!("{}: {}", table.location, error.strip_backtrace());
                Problem { text, trouble: Trouble::of(error) }
            }
        }
    }

    /// Returns the first Arrow file with wrong lengths. Reading it would abort the process.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub(super) async fn first_with_wrong_lengths(&self, format: &TableFormat) -> Result<Option<Broken>, Problem> {
        if !matches!(format, TableFormat::Arrow) {
            return Ok(None);
        }
        let checked = self.list.iter().map(|meta| async move {
            let checked = arrow_lengths::check_stored(&self.objects.store, meta).await;
            let problem = checked.map_err(|e| self.objects.error_at(&meta.location, &e))?.err();
            let file = self.objects.place_of(&meta.location).to_string();
            Ok::<_, Problem>(problem.map(|problem| Broken { file, line: None, problem }))
        });
        let mut checked = futures::stream::iter(checked.collect::<Vec<_>>()).buffered(CONCURRENT_READS);
        while let Some(broken) = checked.next().await.transpose()? {
            if broken.is_some() {
                return Ok(broken);
            }
        }
        Ok(None)
    }

    /// Rereads the files until one turns out to be broken, and returns it.
    pub(super) async fn first_broken(&self, format: &TableFormat) -> Option<Broken> {
        for meta in &self.list {
            let place = self.objects.place_of(&meta.location);
            // A file in a bucket is read from a temporary copy, which is deleted at the end of this iteration.
            let copy = match &place {
                Place::Local(_) => None,
                Place::Remote(_) | Place::Hub(_) if meta.size > MAX_BYTES_TO_DIAGNOSE => return None,
                Place::Remote(_) | Place::Hub(_) => {
                    let copy = tempfile::NamedTempFile::new().ok()?;
                    download(&self.objects, meta, copy.reopen().ok()?).await.ok()?;
                    Some(copy)
                }
            };
            let path =
                copy.as_ref().map_or_else(|| place.local().map(Path::to_owned), |copy| Some(copy.path().to_owned()))?;
            let format = format.clone();
            let found = tokio::task::spawn_blocking(move || diagnose::problem_of(&format, &path)).await.ok()?;
            if let Some(problem) = found {
                return Some(Broken { file: place.to_string(), line: None, problem });
            }
        }
        None
    }
}

/// Selects the files of a folder that belong to the table.
fn select_files(
    mut listed: Vec<ObjectMeta>,
    root: &Key,
    table: &Table,
    pattern: Option<&ListingTableUrl>,
) -> (Vec<ObjectMeta>, SkippedFiles) {
    let mut skipped = SkippedFiles::default();
    listed.sort_by(|a, b| a.location.cmp(&b.location));
    let (mut list, mut with_other_ending, mut without_ending) = (Vec::new(), Vec::new(), Vec::new());
    // A pattern that itself begins with `.` or `_` matches hidden files.
    let matches_hidden = pattern
        .is_some_and(|pattern| pattern.get_glob().as_ref().is_some_and(|glob| glob.as_str().starts_with(['.', '_'])));
    let is_hidden = |name: &str| name.starts_with(['.', '_']) && !name.contains('=');
    for file in listed {
        let folders = hive::folders(root, &file.location);
        let name = file.location.filename().unwrap_or_default();
        let is_named = |url: &ListingTableUrl| url.get_glob().as_ref().is_some_and(|glob| glob.matches(name));
        if pattern.is_some_and(|pattern| !is_named(pattern) || !folders.is_empty()) {
            continue;
        }
        let below = hive::below(root, &file.location);
        if folders.iter().any(|folder| is_hidden(folder)) || is_hidden(name) && !matches_hidden {
            skipped.hidden(below);
        } else if folders.iter().any(|folder| !folder.contains('=')) {
            skipped.in_folder(below);
        } else if pattern.is_some() || endings(&table.format).contains(&ending(name).as_str()) {
            list.push(file);
        } else if other_endings(&table.format).contains(&ending(name).as_str()) {
            with_other_ending.push(file);
        } else if !name.contains('.') {
            without_ending.push(file);
        } else {
            skipped.other(below);
        }
    }
    // BigQuery and Spark may write names without an extension. If other files have the extension, such a file is
    // skipped and reported.
    for others in [with_other_ending, without_ending] {
        if list.is_empty() {
            list = others;
        } else {
            for file in &others {
                skipped.other(hive::below(root, &file.location));
            }
        }
    }
    (list, skipped)
}

/// Returns the message for a folder without files of the table's format.
fn no_files_message(place: &Place, format: &TableFormat, is_glob: bool, skipped: &SkippedFiles) -> String {
    if is_glob {
        let hint = place.local().and_then(not_replaced);
        return format!("no file matches {place}{}", hint.unwrap_or_default());
    }
    let wanted = endings(format).iter().map(|ending| format!("*.{ending}")).collect::<Vec<_>>().join(" or ");
    let others = skipped.others().find_map(|name| Some((name, format_of_name(name)?)));
    let hint = match others {
        Some((name, format)) => format!("; it has {name}, which {{ uri = \"…\", format = \"{format}\" }} reads"),
        None => skipped.to_string(),
    };
    format!("folder {place} has no {wanted} file{hint}")
}

/// Resolves a local path. An existing path is taken literally; otherwise glob characters make it a pattern.
async fn local(path: &Path, table: &Table, objects: &Objects) -> Result<Resolved, Problem> {
    if path.is_dir() {
        return Ok(Resolved::Folder(objects.root.clone(), None));
    }
    if path.exists() {
        let found = objects.head().await?;
        return found.map(Resolved::File).ok_or_else(|| format!("{} cannot be read", table.location).into());
    }
    if let Ok(target) = path.read_link() {
        return Err(format!("{} is a link to {}, which does not exist", path.display(), target.display()).into());
    }
    if Place::Local(path.file_name().unwrap_or_default().into()).is_glob() {
        let (folder, name) = (path.parent().unwrap_or(Path::new("")), path.file_name().unwrap_or_default());
        if !folder.as_os_str().is_empty()
            && !folder.is_dir()
            && let Some(problem) = pattern_for_folders(path)
        {
            return Err(problem.into());
        }
        let above =
            Objects::open(&Place::Local(if folder.as_os_str().is_empty() { ".".into() } else { folder.into() }))?;
        return Ok(Resolved::Folder(above.root, Some(pattern(&name.to_string_lossy(), table)?)));
    }
    match pattern_for_folders(path) {
        Some(problem) => Err(problem.into()),
        None => Err(format!("{} does not exist{}", path.display(), nearest_file(path)).into()),
    }
}

/// Returns a file name pattern as a `DataFusion` URL with a glob.
fn pattern(text: &str, table: &Table) -> Result<ListingTableUrl, String> {
    let root = ListingTableUrl::parse("file:///").and_then(|root| root.with_glob(text));
    root.map_err(|e| format!("{}: {}", table.location, e.strip_backtrace()))
}

/// Resolves a key in a bucket. Only the server knows whether a key is a file or a folder: a key with an object of
/// exactly that name is a file.
async fn in_bucket(remote: &Remote, objects: &Objects) -> Result<Resolved, Problem> {
    let key = remote.key();
    let is_folder = key.is_empty() || key.ends_with('/');
    if !is_folder && let Some(file) = objects.head().await? {
        return Ok(Resolved::File(file));
    }
    if objects.place.is_glob() {
        if let Some(problem) = pattern_for_folders(Path::new(&remote.to_string())) {
            return Err(problem.into());
        }
        let (folder, name) = key.rsplit_once('/').unwrap_or(("", key));
        let pattern = ListingTableUrl::parse("file:///").and_then(|root| root.with_glob(name));
        let pattern = pattern.map_err(|e| format!("{remote}: {}", e.strip_backtrace()))?;
        return Ok(Resolved::Folder(Key::parse(folder).map_err(|e| e.to_string())?, Some(pattern)));
    }
    if objects.has_children().await? {
        return Ok(Resolved::Folder(objects.root.clone(), None));
    }
    let problem = match nearest_object(remote, objects).await {
        Ok(hint) if key.is_empty() => format!("{remote} is empty{hint}"),
        Ok(hint) => format!("{remote} does not exist{hint}"),
        // Listing may be forbidden where reading is allowed; then there is no hint.
        Err(e) if e.trouble == Trouble::Refused => format!("{remote} does not exist"),
        Err(e) => return Err(e.into()),
    };
    Err(problem.into())
}

/// Returns a hint for a key that does not exist, as [`nearest_file`] does for a path.
async fn nearest_object(remote: &Remote, objects: &Objects) -> Result<String, ObjectsError> {
    let key = remote.key().trim_end_matches('/');
    let (folder, name) = key.rsplit_once('/').unwrap_or(("", key));
    let parent = object_store::path::Path::parse(folder).unwrap_or_default();
    let found = objects.store.list_with_delimiter(Some(&parent)).await.map_err(|e| objects.error(&e))?;
    let keys = found.common_prefixes.iter().chain(found.objects.iter().map(|object| &object.location));
    let names: Vec<&str> = keys.filter_map(|key| key.filename()).collect();
    if names.is_empty() && !folder.is_empty() {
        return Ok(format!(", nor does its folder {}", remote.with_key(folder)));
    }
    let other = closest(name, names);
    Ok(other.map_or_else(String::new, |other| {
        let other = if folder.is_empty() { other.to_owned() } else { format!("{folder}/{other}") };
        format!("; did you mean {}?", remote.with_key(other))
    }))
}

/// Returns the error for a glob with a pattern in a folder name, which `DataFusion` matches unreliably.
fn pattern_for_folders(glob: &Path) -> Option<String> {
    let folder = glob
        .parent()?
        .ancestors()
        .filter(|folder| folder.file_name().is_some_and(|name| name.to_string_lossy().contains(['*', '?', '['])));
    let folder = folder.last()?;
    let (name, above) = (Path::new(folder.file_name()?).display(), folder.parent()?.display());
    Some(format!(
        "{}: only the name of a file can be a pattern, and `{name}` stands for folders; name the folder {above}/ \
         instead, whose folders of the form key=value are read as columns to filter by",
        glob.display()
    ))
}
