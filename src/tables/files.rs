//! The files of a table: a file, a folder or a glob, on the local disk or in a bucket, becomes the list of what is read.

use std::path::Path;
use std::sync::Arc;

use arrow::datatypes::{SchemaRef, TimeUnit};
use datafusion::common::DataFusionError;
use datafusion::datasource::listing::ListingTableUrl;
use datafusion::datasource::physical_plan::parquet::metadata::DFParquetMetadata;
use datafusion::execution::SessionState;
use datafusion::execution::cache::cache_manager::FileMetadataCache;
use datafusion::prelude::SessionContext;
use futures::{StreamExt, TryStreamExt};
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};

use super::Problem;
use super::arrow_lengths;
use super::delimited;
use super::diagnose::{self, Broken};
use super::format::{extension, file_format};
use super::types::FileSchema;
use crate::config::{CsvOptions, Place, Remote, Table, TableFormat};
use crate::files::{nearest_file, nearest_name, not_replaced};
use crate::objects::{Objects, ObjectsError, Trouble, cause_in, download};
use crate::store::SourceFile;

/// The size above which a file in a bucket is not downloaded only to find the place where it is broken, in bytes.
const MOST_TO_DIAGNOSE: u64 = 1 << 30;

/// Footers and heads that are read at once.
pub(super) const READS_UNDER_WAY: usize = 32;

/// The columns of a Parquet file.
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

/// The files of a table, in the order in which they are read.
pub(super) struct Files {
    /// What DataFusion lists to find them.
    pub(super) url: ListingTableUrl,
    /// The ending of those that are meant.
    pub(super) extension: String,
    objects: Objects,
    list: Vec<ObjectMeta>,
}

impl Files {
    /// Finds the files of a table, at least one, and gives the session the store that they are in.
    pub(super) async fn find(context: &SessionContext, table: &Table) -> Result<Self, Problem> {
        let place = &table.location.place;
        let objects = Objects::open(place)?;
        let url = match place {
            Place::Local(path) => local_url(path, table)?,
            Place::Remote(remote) => {
                context.runtime_env().register_object_store(&remote.session_url(), Arc::clone(&objects.store));
                remote_url(remote, &objects).await?
            }
            Place::Hub(_) => return Err(format!("{place} is a model, not a table").into()),
        };
        // A file or a glob says itself which files are meant.
        let extension =
            if url.is_collection() && url.get_glob().is_none() { extension(&table.format) } else { String::new() };
        let failed = |e: &DataFusionError| describe(e, &objects, table);
        let state = context.state();
        let listed = url.list_all_files(&state, objects.store.as_ref(), &extension).await;
        let mut list: Vec<ObjectMeta> = listed.map_err(|e| failed(&e))?.try_collect().await.map_err(|e| failed(&e))?;
        let shown = |meta: &ObjectMeta| objects.place_of(&meta.location);
        // DataFusion passes over such files in silence; text files without a line are whole.
        let is_binary = matches!(table.format, TableFormat::Parquet | TableFormat::Arrow);
        if let Some(empty) = list.iter().find(|meta| is_binary && meta.size == 0) {
            let text = format!("{} is empty; was it cut off while it was written or copied?", shown(empty));
            return Err(Problem { text, passes: true });
        }
        if list.is_empty() {
            let problem = match url.get_glob() {
                Some(_) => {
                    let hint = place.local().and_then(not_replaced);
                    format!("no file matches {place}{}", hint.unwrap_or_default())
                }
                None => format!("folder {place} has no *{extension} file"),
            };
            return Err(problem.into());
        }
        let has_header = matches!(&table.format, TableFormat::Csv(options) if options.header);
        if has_header && list.iter().all(|meta| meta.size == 0) {
            return Err(format!("{} is empty; its first line would name the columns", shown(&list[0])).into());
        }
        list.sort_by(|a, b| a.location.cmp(&b.location));
        Ok(Self { url, extension, objects, list })
    }

    /// What they are now.
    pub(super) fn describe_all(&self) -> impl Iterator<Item = SourceFile> {
        self.list.iter().map(|meta| SourceFile {
            url: self.objects.place_of(&meta.location).to_string(),
            bytes: meta.size,
            etag: meta.e_tag.clone(),
            modified: meta.last_modified,
        })
    }

    /// The columns of delimited text.
    pub(super) async fn columns_of_text(&self, options: &CsvOptions) -> Result<SchemaRef, DataFusionError> {
        delimited::schema(&self.objects.store, &self.list, options).await
    }

    /// The columns of each of them.
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
        futures::stream::iter(read.collect::<Vec<_>>()).buffered(READS_UNDER_WAY).try_collect().await
    }

    /// Whether the first of them begins with these bytes.
    pub(super) async fn begin_with(&self, bytes: &[u8]) -> bool {
        let Some(first) = self.list.first() else { return false };
        let start = self.objects.store.get_range(&first.location, 0..bytes.len() as u64).await;
        start.is_ok_and(|start| start == bytes)
    }

    /// What an error of DataFusion means that came up in reading them.
    pub(super) fn describe(&self, error: &DataFusionError, table: &Table) -> Problem {
        describe(error, &self.objects, table)
    }

    /// The first local Arrow file that must not be read, as it would end the process.
    pub(super) async fn with_wrong_lengths(&self, format: &TableFormat) -> Option<Broken> {
        if !matches!(format, TableFormat::Arrow) {
            return None;
        }
        for place in self.list.iter().map(|meta| self.objects.place_of(&meta.location)) {
            let path = place.local()?.to_owned();
            let checked = tokio::task::spawn_blocking(move || arrow_lengths::check(&path)).await;
            if let Ok(Err(problem)) = checked {
                return Some(Broken { file: place.to_string(), line: None, problem });
            }
        }
        None
    }

    /// Reads them once more until one turns out to be broken.
    pub(super) async fn first_broken(&self, format: &TableFormat) -> Option<Broken> {
        for meta in &self.list {
            let place = self.objects.place_of(&meta.location);
            // A file in a bucket is read from a copy, which ends with this turn.
            let copy = match &place {
                Place::Local(_) => None,
                Place::Remote(_) | Place::Hub(_) if meta.size > MOST_TO_DIAGNOSE => return None,
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
            if let Some((line, problem)) = found {
                return Some(Broken { file: place.to_string(), line, problem });
            }
        }
        None
    }
}

fn describe(error: &DataFusionError, objects: &Objects, table: &Table) -> Problem {
    match cause_in(error) {
        Some(cause) if objects.place.remote().is_some() => objects.error(cause).into(),
        _ => format!("{}: {}", table.location, error.strip_backtrace()).into(),
    }
}

fn local_url(path: &Path, table: &Table) -> Result<ListingTableUrl, String> {
    let describe = |e: DataFusionError| format!("{}: {}", table.location, e.strip_backtrace());
    let absolute = std::path::absolute(path).map_err(|e| describe(e.into()))?;
    let mut text = absolute.to_string_lossy().into_owned();
    if absolute.is_dir() && !text.ends_with('/') {
        text.push('/');
    }
    let url = ListingTableUrl::parse(text).map_err(describe)?;
    if url.get_glob().is_none() && !path.exists() {
        return Err(format!("{} does not exist{}", path.display(), nearest_file(path)));
    }
    match url.get_glob().as_ref().and_then(|_| pattern_for_folders(path)) {
        Some(problem) => Err(problem),
        None => Ok(url),
    }
}

/// The place on the disk that a URL of DataFusion stands for; a folder ends in `/`.
pub(super) fn local_place(url: &ListingTableUrl) -> Option<Place> {
    let mut path = url.get_url().to_file_path().ok()?;
    if url.is_collection() {
        path.push("");
    }
    if let Some(pattern) = url.get_glob() {
        path.push(pattern.as_str());
    }
    Some(Place::Local(path))
}

/// Whether a key is a file or a folder, only the server knows: what has an object of that very name is a file.
async fn remote_url(remote: &Remote, objects: &Objects) -> Result<ListingTableUrl, Problem> {
    let listing = |key: &str| {
        let url = ListingTableUrl::try_new(remote.with_key(key).session_url(), None);
        url.map_err(|e| Problem::from(e.to_string()))
    };
    let key = remote.key();
    if objects.place.is_glob() {
        if let Some(problem) = pattern_for_folders(Path::new(&remote.to_string())) {
            return Err(problem.into());
        }
        let (folder, pattern) = key.rsplit_once('/').unwrap_or(("", key));
        return listing(&format!("{folder}/"))?
            .with_glob(pattern)
            .map_err(|e| format!("{remote}: {}", e.strip_backtrace()).into());
    }
    let is_folder = key.is_empty() || key.ends_with('/');
    if !is_folder && objects.head().await?.is_some() {
        return listing(key);
    }
    if objects.has_children().await? {
        return listing(&format!("{}/", key.trim_end_matches('/')));
    }
    let problem = match nearest_object(remote, objects).await {
        Ok(hint) if key.is_empty() => format!("{remote} is empty{hint}"),
        Ok(hint) => format!("{remote} does not exist{hint}"),
        // Listing may be forbidden where reading is not; then this is all that is known.
        Err(e) if e.trouble == Trouble::Refused => format!("{remote} does not exist"),
        Err(e) => return Err(e.into()),
    };
    Err(problem.into())
}

/// The same as [`nearest_file`] for a key that does not exist.
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
    let other = nearest_name(name, names.into_iter());
    Ok(other.map_or_else(String::new, |other| {
        let other = if folder.is_empty() { other.to_owned() } else { format!("{folder}/{other}") };
        format!("; did you mean {}?", remote.with_key(other))
    }))
}

/// Why a glob cannot be read that has a pattern for folders, which DataFusion matches never or now and then.
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
