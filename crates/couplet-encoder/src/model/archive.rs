//! PyTorch archives: a zip file with uncompressed members, one of which is a pickle that lists the tensors and where
//! their values are.
//!
//! candle's interpreter reads the pickle. It supports only the few opcodes that tensors need and never runs code from
//! the file, but it does not limit memory: a compressed member, or a few bytes of opcodes that copy objects repeatedly,
//! could exhaust it. Therefore only uncompressed members are read, and [`pickle`] counts the objects that the opcodes
//! would create before the interpreter runs.
//!
//! **Source**: `torch/csrc/jit/serialization` of PyTorch (the writer).

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::Cursor;
use std::path::Path;

use bytes::Bytes;
use candle_core::pickle::{Object, Stack, TensorInfo};
use candle_core::{Device, Error, Layout, Result, Tensor};
use couplet_storage::backtrace::message;
use zip::{CompressionMethod, ZipArchive};

use super::pickle;

/// The largest accepted pickle, in bytes. Those of real models are below 1 MiB.
const MAX_PICKLE_BYTES: u64 = 64 << 20;

/// An open archive and the list of its tensors.
pub(super) struct Archive {
    bytes: Bytes,
    members: BTreeMap<String, Member>,
    tensors: BTreeMap<String, TensorInfo>,
}

/// A file inside the archive.
struct Member {
    /// The offset of its bytes in the archive.
    start: u64,
    /// The size in bytes.
    size: u64,
    /// True if it is neither compressed nor encrypted.
    is_stored: bool,
}

impl Archive {
    /// Opens an archive and lists its tensors without reading their values.
    ///
    /// # Errors
    /// Returns an error if the file is not a PyTorch archive, or if its pickle would need too much memory.
    pub(super) fn open(path: &Path, bytes: Bytes) -> Result<Self> {
        let mut archive = Self { members: members(&bytes)?, tensors: BTreeMap::new(), bytes };
        let pickles: Vec<String> = archive.members.keys().filter(|name| name.ends_with("data.pkl")).cloned().collect();
        for name in &pickles {
            let (start, size) = archive.location(name)?;
            if size > MAX_PICKLE_BYTES {
                return Err(error(format!("{name} has {size} bytes, and at most {MAX_PICKLE_BYTES} are read")));
            }
            let pickle = archive.slice(start, size)?;
            pickle::check(pickle).map_err(error)?;
            let mut stack = Stack::empty();
            stack.read_loop(&mut &*pickle)?;
            let folder = Path::new(name.strip_suffix(".pkl").unwrap_or(name));
            let Object::Dict(entries) = state_of(stack.finalize()?) else { continue };
            for (name, value) in entries {
                match tensor_of(value).into_tensor_info(name, folder) {
                    Ok(Some(tensor)) => drop(archive.tensors.insert(tensor.name.clone(), tensor)),
                    // Other objects are not needed.
                    Ok(None) => {}
                    Err(e) => tracing::debug!("{}: a tensor is left out: {}", path.display(), message(&e)),
                }
            }
        }
        Ok(archive)
    }

    /// Returns the tensors with their shapes and types.
    pub(super) fn tensors(&self) -> impl Iterator<Item = &TensorInfo> {
        self.tensors.values()
    }

    /// Reads a tensor, or returns `None` if there is no tensor with that name.
    ///
    /// # Errors
    /// Returns an error if the tensor is not contiguous, or if the archive does not contain all of its bytes.
    pub(super) fn tensor(&self, name: &str) -> Result<Option<Tensor>> {
        let Some(info) = self.tensors.get(name) else { return Ok(None) };
        let layout = &info.layout;
        let is_column_major = !layout.is_contiguous() && layout.is_fortran_contiguous();
        if !layout.is_contiguous() && !is_column_major {
            return Err(error(format!("it is not contiguous: {layout:?}")));
        }
        let (start, size) = self.location(&info.path)?;
        // The offset is in bytes, not in elements.
        let offset = layout.start_offset() as u64;
        let bytes = bytes_of(layout, info.dtype.size_in_bytes());
        let end = bytes.and_then(|bytes| offset.checked_add(bytes)).filter(|end| *end <= size);
        let (Some(bytes), Some(_)) = (bytes, end) else {
            return Err(error("failed to fill whole buffer"));
        };
        let values = self.slice(start + offset, bytes)?;
        let shape = layout.dims();
        if !is_column_major {
            return Tensor::from_raw_buffer(values, info.dtype, shape, &Device::Cpu).map(Some);
        }
        let reversed: Vec<usize> = shape.iter().rev().copied().collect();
        let order: Vec<usize> = (0..shape.len()).rev().collect();
        Tensor::from_raw_buffer(values, info.dtype, &reversed, &Device::Cpu)?.permute(order).map(Some)
    }

    /// Returns `size` bytes of the file from offset `start`, or an error if the file is too short.
    fn slice(&self, start: u64, size: u64) -> Result<&[u8]> {
        let end = start.checked_add(size).and_then(|end| usize::try_from(end).ok());
        let slice = usize::try_from(start).ok().zip(end).and_then(|(start, end)| self.bytes.get(start..end));
        slice.ok_or_else(|| error("failed to fill whole buffer"))
    }

    /// Returns the offset and the size of a member in bytes, or an error if it is missing or not stored uncompressed.
    fn location(&self, name: &str) -> Result<(u64, u64)> {
        match self.members.get(name) {
            Some(member) if member.is_stored => Ok((member.start, member.size)),
            Some(_) => Err(error(format!(
                "{name} is compressed or encrypted, as PyTorch never writes it; load it with transformers and \
                 `save_pretrained` it"
            ))),
            None => Err(error("specified file not found in archive")),
        }
    }
}

/// Unwraps the tensor of a parameter that has attributes of its own, which candle does not support.
fn tensor_of(object: Object) -> Object {
    match object {
        Object::Reduce { callable, args } if is_class(&callable, "torch._utils", "_rebuild_parameter_with_state") => {
            match *args {
                Object::Tuple(args) => args.into_iter().next().unwrap_or(Object::None),
                _ => Object::None,
            }
        }
        object => object,
    }
}

/// Returns the state dictionary that `torch.save` wrote, whether saved directly or as a scripted module.
fn state_of(object: Object) -> Object {
    match object {
        Object::Build { callable, args } => match *callable {
            Object::Reduce { callable, .. } if is_class(&callable, "__torch__", "Module") => *args,
            _ => Object::None,
        },
        object => object,
    }
}

fn is_class(object: &Object, module: &str, class: &str) -> bool {
    matches!(object, Object::Class { module_name, class_name } if module_name == module && class_name == class)
}

/// Returns the size of a tensor in bytes, or `None` on overflow.
fn bytes_of(layout: &Layout, size: usize) -> Option<u64> {
    let values = layout.dims().iter().try_fold(1usize, |values, dim| values.checked_mul(*dim))?;
    Some(values.checked_mul(size)? as u64)
}

/// Reads the list of members from the zip directory at the end of the file.
fn members(file: &[u8]) -> Result<BTreeMap<String, Member>> {
    let mut zip = ZipArchive::new(Cursor::new(file)).map_err(error)?;
    let mut members = BTreeMap::new();
    for i in 0..zip.len() {
        let member = zip.by_index_raw(i).map_err(error)?;
        let Some(start) = member.data_start() else { return Err(error("invalid Zip archive: a member has no data")) };
        let is_stored = member.compression() == CompressionMethod::Stored
            && !member.encrypted()
            && member.size() == member.compressed_size();
        let name = member.name().map_err(error)?.into_owned();
        members.insert(name, Member { start, size: member.size(), is_stored });
    }
    Ok(members)
}

fn error(problem: impl Display) -> Error {
    Error::Msg(problem.to_string())
}
