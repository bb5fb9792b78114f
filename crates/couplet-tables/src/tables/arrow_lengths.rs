//! Checks the lengths in an Arrow file before it is read.
//!
//! arrow-ipc allocates as much memory as the file claims that its parts need, and a failed allocation aborts the
//! process. So each part must lie within the file, and compressed data must not claim to expand more than its codec
//! allows.
//!
//! **Source**: <https://arrow.apache.org/docs/format/Columnar.html#serialization-and-interprocess-communication-ipc>

use std::io::{self, BufReader, ErrorKind, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;

use arrow::ipc::{CompressionType, Message, RecordBatch, root_as_footer, root_as_message};
use bytes::Bytes;
use couplet_storage::files;
use object_store::path::Path as Key;
use object_store::{GetOptions, GetRange, GetResult, GetResultPayload, ObjectMeta, ObjectStore, ObjectStoreExt as _};
use tokio::runtime::Handle;

/// The magic bytes at the start and the end of a file; a stream has none.
const MAGIC: [u8; 6] = *b"ARROW1";

/// The marker before each message, except in files of the old format.
const CONTINUATION: [u8; 4] = [0xFF; 4];

/// The minimum number of bytes before the first message of a file.
const HEAD: u64 = 8;

/// The number of bytes after the footer: its length and the magic bytes.
const TAIL: u64 = 10;

/// The maximum expansion factor that each codec's format allows.
const LZ4: u64 = 255;
const ZSTD: u64 = 1 << 15;

/// The uncompressed buffer size in bytes that is always accepted, whatever the compressed size.
const ALWAYS_ALLOWED: u64 = 1 << 16;

/// The bytes per request to an object store. A file of at most this size is downloaded whole.
const WINDOW_BYTES: u64 = 1 << 20;

/// Checks that all parts of a local Arrow file or stream lie within it.
///
/// # Errors
/// The problem with the file.
pub(super) fn check(path: &Path) -> Result<(), String> {
    let file = files::open(path).map_err(|e| e.to_string())?;
    let length = file.metadata().map_err(|e| e.to_string())?.len();
    Parts { file: BufReader::new(file), length }.check()
}

/// Checks a file in an object store, in the version that the store returns. The inner error is the problem with the
/// file.
///
/// # Errors
/// A store that does not return the file.
pub(super) async fn check_stored(
    store: &Arc<dyn ObjectStore>,
    meta: &ObjectMeta,
) -> object_store::Result<Result<(), String>> {
    let range = Some(GetRange::Bounded(0..WINDOW_BYTES));
    let found = store.get_opts(&meta.location, GetOptions { range, ..GetOptions::default() }).await?;
    let length = found.meta.size;
    let checked = match found.payload {
        GetResultPayload::File(file, _) => tokio::task::spawn_blocking(move || {
            let file = BufReader::new(file);
            Ok(Parts { file, length }.check())
        }),
        payload @ GetResultPayload::Stream(_) => {
            let window = GetResult { payload, ..found }.bytes().await?;
            let (store, location, runtime) = (Arc::clone(store), meta.location.clone(), Handle::current());
            let file = Object { store, location, length, runtime, at: 0, start: 0, window, failed: None };
            tokio::task::spawn_blocking(move || {
                let mut parts = Parts { file, length };
                let checked = parts.check();
                parts.file.failed.map_or(Ok(checked), Err)
            })
        }
    };
    checked.await.unwrap_or_else(|e| Ok(Err(e.to_string())))
}

/// A reader of an object that requests windows of at least [`WINDOW_BYTES`] bytes. Most Arrow files are read
/// sequentially, so one window serves many reads.
struct Object {
    store: Arc<dyn ObjectStore>,
    location: Key,
    length: u64,
    runtime: Handle,
    at: u64,
    /// The offset of the current window.
    start: u64,
    window: Bytes,
    /// The error of the last failed request.
    failed: Option<object_store::Error>,
}

impl Read for Object {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if !(self.start..self.start + self.window.len() as u64).contains(&self.at) {
            // Near the end of the file, where the footer is, the window also includes bytes before the position.
            let start = self.at.min(self.length.saturating_sub(WINDOW_BYTES));
            let end = (start + WINDOW_BYTES).max(self.at.saturating_add(buffer.len() as u64)).min(self.length);
            if self.at >= end {
                return Ok(0);
            }
            match self.runtime.block_on(self.store.get_range(&self.location, start..end)) {
                Ok(window) => (self.start, self.window) = (start, window),
                Err(e) => {
                    let error = io::Error::other(e.to_string());
                    self.failed = Some(e);
                    return Err(error);
                }
            }
        }
        let from = usize::try_from(self.at - self.start).unwrap_or(usize::MAX);
        let rest = self.window.get(from..).unwrap_or_default();
        let read = rest.len().min(buffer.len());
        buffer[..read].copy_from_slice(&rest[..read]);
        self.at += read as u64;
        Ok(read)
    }
}

impl Seek for Object {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.length.checked_add_signed(by),
        };
        self.at = at.ok_or(ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

struct Parts<F> {
    file: F,
    length: u64,
}

impl<F: Read + Seek> Parts<F> {
    /// Reads bytes that must lie within the file.
    fn read(&mut self, start: u64, length: u64) -> Result<Vec<u8>, String> {
        let end = start.checked_add(length).filter(|end| *end <= self.length);
        if end.is_none() {
            return Err(format!("{length} bytes at byte {start} are not in it, as it has {}", self.length));
        }
        self.file.seek(SeekFrom::Start(start)).map_err(|e| e.to_string())?;
        let mut bytes = vec![0; usize::try_from(length).map_err(|e| e.to_string())?];
        self.file.read_exact(&mut bytes).map_err(|e| e.to_string())?;
        Ok(bytes)
    }

    fn check(&mut self) -> Result<(), String> {
        let checked = self.read(0, self.length.min(6)).and_then(|first| {
            let is_file = self.length >= HEAD && first == MAGIC;
            if is_file { self.check_file() } else { self.check_stream() }
        });
        checked.map_err(|problem| format!("neither a complete Arrow file nor a complete Arrow stream: {problem}"))
    }

    fn check_file(&mut self) -> Result<(), String> {
        let tail = self.read(self.length.saturating_sub(TAIL), TAIL)?;
        if tail[4..] != MAGIC {
            return Err("it does not end like an Arrow file".into());
        }
        let footer_length = length(i32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]]))?;
        let end = (self.length - TAIL).checked_sub(footer_length).filter(|end| *end >= HEAD);
        let end = end.ok_or_else(|| format!("it claims a footer of {footer_length} bytes"))?;
        let footer = self.read(end, footer_length)?;
        let footer = root_as_footer(&footer).map_err(|e| format!("its footer is damaged: {e}"))?;
        for block in footer.dictionaries().into_iter().chain(footer.recordBatches()).flatten() {
            let (start, head) = (length(block.offset())?, length(block.metaDataLength())?);
            let body = length(block.bodyLength())?;
            let is_within = start.checked_add(head).and_then(|at| at.checked_add(body)).is_some_and(|at| at <= end);
            if !is_within {
                return Err(format!("{head} + {body} bytes at byte {start} are not before its footer at byte {end}"));
            }
            let head_bytes = self.read(start, head)?;
            let message = match head_bytes.get(..4) {
                Some(first) if first == CONTINUATION => head_bytes.get(8..),
                _ => head_bytes.get(4..),
            };
            self.check_message(message.unwrap_or_default(), start + head, Some(body))?;
        }
        Ok(())
    }

    fn check_stream(&mut self) -> Result<(), String> {
        let mut at = 0;
        // A zero length may mark the end of the stream, or nothing may.
        while at + 4 <= self.length {
            let mut first = self.read(at, 4)?;
            at += 4;
            if first == CONTINUATION {
                first = self.read(at, 4)?;
                at += 4;
            }
            let head = length(i32::from_le_bytes([first[0], first[1], first[2], first[3]]))?;
            if head == 0 {
                break;
            }
            let message = self.read(at, head)?;
            at += head;
            at += self.check_message(&message, at, None)?;
        }
        Ok(())
    }

    /// Checks the buffers of a message whose body begins at `start`. Returns the length of the body.
    fn check_message(&mut self, message: &[u8], start: u64, length_of_body: Option<u64>) -> Result<u64, String> {
        let message =
            root_as_message(message).map_err(|e| format!("the message before byte {start} is damaged: {e}"))?;
        let body = length(message.bodyLength())?;
        let body = length_of_body.map_or(body, |known| known.min(body));
        if start.checked_add(body).is_none_or(|end| end > self.length) {
            return Err(format!("{body} bytes at byte {start} are not in it, as it has {}", self.length));
        }
        if let Some(batch) = batch_of(&message) {
            self.check_batch(&batch, start, body)?;
        }
        Ok(body)
    }

    fn check_batch(&mut self, batch: &RecordBatch, start: u64, body: u64) -> Result<(), String> {
        length(batch.length())?;
        let max_expansion = batch.compression().map(|compression| match compression.codec() {
            CompressionType::ZSTD => ZSTD,
            _ => LZ4,
        });
        for buffer in batch.buffers().into_iter().flatten() {
            let (offset, size) = (length(buffer.offset())?, length(buffer.length())?);
            if offset.checked_add(size).is_none_or(|end| end > body) {
                return Err(format!("a buffer of {size} bytes is not in the {body} bytes at byte {start}"));
            }
            let Some(max_expansion) = max_expansion.filter(|_| size >= 8) else { continue };
            let prefix = self.read(start + offset, 8)?;
            let prefix = i64::from_le_bytes(prefix.try_into().unwrap_or_default());
            // -1 marks an uncompressed buffer.
            let claimed = if prefix == -1 { 0 } else { length(prefix)? };
            if claimed > size.saturating_mul(max_expansion).max(ALWAYS_ALLOWED) {
                return Err(format!("{size} compressed bytes at byte {} would become {claimed}", start + offset));
            }
        }
        Ok(())
    }
}

fn batch_of<'m>(message: &Message<'m>) -> Option<RecordBatch<'m>> {
    message.header_as_record_batch().or_else(|| message.header_as_dictionary_batch()?.data())
}

/// Converts a length from the file, which must not be negative.
fn length(written: impl Into<i64>) -> Result<u64, String> {
    let written = written.into();
    u64::try_from(written).map_err(|_| format!("it has a length of {written}"))
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use arrow::array::{ArrayRef, Int64Array, RecordBatch as Rows, StringArray};
    use arrow::ipc::writer::{FileWriter, IpcWriteOptions, StreamWriter};
    use object_store::memory::InMemory;

    use super::*;

    fn rows(number: i64) -> Rows {
        let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(0..number));
        let texts: ArrayRef = Arc::new(StringArray::from_iter_values((0..number).map(|i| format!("text {}", i % 7))));
        Rows::try_from_iter([("id", ids), ("text", texts)]).unwrap()
    }

    fn written(is_stream: bool, codec: Option<CompressionType>) -> Vec<u8> {
        written_of(&rows(60), is_stream, codec)
    }

    fn written_of(rows: &Rows, is_stream: bool, codec: Option<CompressionType>) -> Vec<u8> {
        let options = IpcWriteOptions::default().try_with_compression(codec).unwrap();
        let mut bytes = Vec::new();
        if is_stream {
            let mut writer = StreamWriter::try_new_with_options(&mut bytes, &rows.schema(), options).unwrap();
            writer.write(rows).unwrap();
            writer.finish().unwrap();
        } else {
            let mut writer = FileWriter::try_new_with_options(&mut bytes, &rows.schema(), options).unwrap();
            writer.write(rows).unwrap();
            writer.write(rows).unwrap();
            writer.finish().unwrap();
        }
        bytes
    }

    fn check(bytes: &[u8]) -> Result<(), String> {
        let mut parts = Parts { file: Cursor::new(bytes), length: bytes.len() as u64 };
        parts.check()
    }

    #[test]
    fn whole_files_and_streams_pass() {
        for codec in [None, Some(CompressionType::LZ4_FRAME), Some(CompressionType::ZSTD)] {
            for is_stream in [false, true] {
                check(&written(is_stream, codec)).unwrap();
            }
        }
    }

    /// Covers an object read in several windows, and one read in a single window.
    #[tokio::test]
    async fn objects_are_checked_as_files_are() {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let location = Key::from("t.arrow");
        let check = async |bytes: Vec<u8>| {
            store.put(&location, bytes.into()).await.unwrap();
            check_stored(&store, &store.head(&location).await.unwrap()).await.unwrap()
        };
        for number in [60, 150_000] {
            let rows = rows(number);
            for codec in [None, Some(CompressionType::LZ4_FRAME), Some(CompressionType::ZSTD)] {
                for is_stream in [false, true] {
                    let mut bytes = written_of(&rows, is_stream, codec);
                    check(bytes.clone()).await.unwrap();
                    let cut = bytes[..bytes.len() - 1].to_vec();
                    let problem = check(cut).await.unwrap_err();
                    assert!(problem.starts_with("neither a complete Arrow file"), "{problem}");
                    // The length of the number buffer, before its compressed form, which begins with the codec's magic
                    // bytes.
                    let magic = match codec {
                        None => continue,
                        Some(CompressionType::ZSTD) => [0x28, 0xB5, 0x2F, 0xFD],
                        Some(_) => [0x04, 0x22, 0x4D, 0x18],
                    };
                    let prefix = [&(number * 8).to_le_bytes()[..], &magic].concat();
                    let at = bytes.windows(12).rposition(|window| window == prefix).unwrap();
                    bytes[at..at + 8].copy_from_slice(&94_000_000_000_000_i64.to_le_bytes());
                    let problem = check(bytes).await.unwrap_err();
                    assert!(problem.contains("would become 94000000000000"), "{codec:?} {is_stream}: {problem}");
                }
            }
        }
        store.delete(&location).await.unwrap();
        let meta = ObjectMeta { location, last_modified: chrono::Utc::now(), size: 8, e_tag: None, version: None };
        assert!(matches!(check_stored(&store, &meta).await, Err(object_store::Error::NotFound { .. })));
    }

    /// If any number in a file is replaced by a huge one, the check rejects the file or the reader allocates no more
    /// than a file can hold.
    #[test]
    fn what_passes_asks_for_no_more_memory_than_there_is() {
        for codec in [None, Some(CompressionType::LZ4_FRAME), Some(CompressionType::ZSTD)] {
            for is_stream in [false, true] {
                let whole = written(is_stream, codec);
                let mut refused = 0;
                for at in (0..whole.len() - 8).step_by(4) {
                    let mut bytes = whole.clone();
                    bytes[at..at + 8].copy_from_slice(&94_000_000_000_000_i64.to_le_bytes());
                    if check(&bytes).is_err() {
                        refused += 1;
                        continue;
                    }
                    // An attempt to allocate that much would abort the test.
                    let read = std::panic::catch_unwind(|| {
                        if is_stream {
                            let reader = arrow::ipc::reader::StreamReader::try_new(Cursor::new(&bytes), None);
                            reader.into_iter().flatten().count()
                        } else {
                            let reader = arrow::ipc::reader::FileReader::try_new(Cursor::new(&bytes), None);
                            reader.into_iter().flatten().count()
                        }
                    });
                    drop(read);
                }
                assert!(refused > 0, "{codec:?} {is_stream}");
            }
        }
    }
}
