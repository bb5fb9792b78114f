//! Escapes percent signs and brackets in paths for the Delta kernel.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, Result,
};
use url::Url;

/// Characters that URLs allow in a path, but that the kernel interprets differently, or that are not allowed in a host.
const RESERVED: [(char, &str); 5] = [('%', "%25"), ('[', "%5B"), (']', "%5D"), ('^', "%5E"), ('|', "%7C")];

/// A store that lists paths URL-escaped. The kernel inserts a listed path into a URL (`buoyant_kernel_engine` 0.28,
/// `filesystem.rs`: `set_path`), in which `%20` means a space.
#[derive(Debug)]
pub(super) struct Escaped(Arc<dyn ObjectStore>);

impl Escaped {
    /// Wraps the store if a path below `root` needs escaping.
    pub(super) fn if_needed(store: Arc<dyn ObjectStore>, root: &Path) -> Arc<dyn ObjectStore> {
        if RESERVED.iter().any(|(mark, _)| root.as_ref().contains(*mark)) { Arc::new(Self(store)) } else { store }
    }
}

/// Escapes the URL of a table. deltalake derives a host from its path (deltalake-core 1.1, `logstore/mod.rs`:
/// `object_store_url`), and panics if that is not a valid host.
pub(super) fn escape_url(url: &Url) -> Url {
    let mut url = url.clone();
    let path = RESERVED[1..].iter().fold(url.path().to_owned(), |path, (mark, code)| path.replace(*mark, code));
    url.set_path(&path);
    url
}

fn escaped(mut meta: ObjectMeta) -> Result<ObjectMeta> {
    let path = RESERVED.iter().fold(meta.location.to_string(), |path, (mark, code)| path.replace(*mark, code));
    meta.location = Path::parse(path)?;
    Ok(meta)
}

impl fmt::Display for Escaped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[async_trait]
impl ObjectStore for Escaped {
    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.0.list(prefix).and_then(async |meta| escaped(meta)).boxed()
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        self.0.list_with_offset(prefix, offset).and_then(async |meta| escaped(meta)).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.0.list_with_delimiter(prefix).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.0.get_opts(location, options).await
    }

    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.0.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.0.put_multipart_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.0.delete_stream(locations)
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.0.copy_opts(from, to, options).await
    }
}
