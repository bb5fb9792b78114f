//! PyTorch's archives: a zip file whose members are not compressed, one of which is a pickle that says which tensors
//! there are, and where.
//!
//! candle's interpreter reads the pickle; it knows the few instructions that tensors need, and executes nothing. It
//! trusts the file to be of an honest size, though: a member that is compressed, or a few bytes that copy themselves,
//! could take all memory. So members are only read where they are stored as they are, and
//! [`pickle`] weighs what the instructions would make before they are followed.
//!
//! **Source**: `torch/csrc/jit/serialization` of PyTorch (what it writes).

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

/// The largest pickle, in bytes: those of real models have less than one MiB.
const MOST_BYTES: u64 = 64 << 20;

/// An archive and its tensors.
pub(super) struct Archive {
    bytes: Bytes,
    members: BTreeMap<String, Member>,
    tensors: BTreeMap<String, TensorInfo>,
}

/// A file in the archive.
struct Member {
    /// Where its bytes are.
    start: u64,
    /// Its bytes.
    size: u64,
    is_stored: bool,
}

impl Archive {
    /// Reads which tensors there are.
    ///
    /// # Errors
    /// A file that is no such archive, or one that would take more memory than an honest one.
    pub(super) fn open(path: &Path, bytes: Bytes) -> Result<Self> {
        let mut archive = Self { members: members(&bytes)?, tensors: BTreeMap::new(), bytes };
        let pickles: Vec<String> = archive.members.keys().filter(|name| name.ends_with("data.pkl")).cloned().collect();
        for name in &pickles {
            let (start, size) = archive.place(name)?;
            if size > MOST_BYTES {
                return Err(wrong(format!("{name} has {size} bytes, and at most {MOST_BYTES} are read")));
            }
            let pickle = archive.part(start, size)?;
            pickle::check(pickle).map_err(wrong)?;
            let mut stack = Stack::empty();
            stack.read_loop(&mut &*pickle)?;
            let folder = Path::new(name.strip_suffix(".pkl").unwrap_or(name));
            let Object::Dict(entries) = state_of(stack.finalize()?) else { continue };
            for (name, value) in entries {
                match tensor_of(value).into_tensor_info(name, folder) {
                    Ok(Some(tensor)) => drop(archive.tensors.insert(tensor.name.clone(), tensor)),
                    // What is no tensor is not needed.
                    Ok(None) => {}
                    Err(e) => tracing::debug!("{}: a tensor is left out: {}", path.display(), message(&e)),
                }
            }
        }
        Ok(archive)
    }

    /// The tensors with their shapes and types.
    pub(super) fn tensors(&self) -> impl Iterator<Item = &TensorInfo> {
        self.tensors.values()
    }

    /// Reads a tensor; none if there is none of that name.
    ///
    /// # Errors
    /// Bytes that the archive does not hold.
    pub(super) fn tensor(&self, name: &str) -> Result<Option<Tensor>> {
        let Some(info) = self.tensors.get(name) else { return Ok(None) };
        let layout = &info.layout;
        let is_reversed = !layout.is_contiguous() && layout.is_fortran_contiguous();
        if !layout.is_contiguous() && !is_reversed {
            return Err(wrong(format!("it is not contiguous: {layout:?}")));
        }
        let (start, size) = self.place(&info.path)?;
        // candle gives the offset in bytes.
        let offset = layout.start_offset() as u64;
        let bytes = bytes_of(layout, info.dtype.size_in_bytes());
        let end = bytes.and_then(|bytes| offset.checked_add(bytes)).filter(|end| *end <= size);
        let (Some(bytes), Some(_)) = (bytes, end) else {
            return Err(wrong("failed to fill whole buffer"));
        };
        let values = self.part(start + offset, bytes)?;
        let shape = layout.dims();
        if !is_reversed {
            return Tensor::from_raw_buffer(values, info.dtype, shape, &Device::Cpu).map(Some);
        }
        let reversed: Vec<usize> = shape.iter().rev().copied().collect();
        let order: Vec<usize> = (0..shape.len()).rev().collect();
        Tensor::from_raw_buffer(values, info.dtype, &reversed, &Device::Cpu)?.permute(order).map(Some)
    }

    /// Bytes of the file, which must be in it.
    fn part(&self, start: u64, size: u64) -> Result<&[u8]> {
        let end = start.checked_add(size).and_then(|end| usize::try_from(end).ok());
        let part = usize::try_from(start).ok().zip(end).and_then(|(start, end)| self.bytes.get(start..end));
        part.ok_or_else(|| wrong("failed to fill whole buffer"))
    }

    /// Where the bytes of a member begin, and how many they are.
    fn place(&self, name: &str) -> Result<(u64, u64)> {
        match self.members.get(name) {
            Some(member) if member.is_stored => Ok((member.start, member.size)),
            Some(_) => Err(wrong(format!(
                "{name} is compressed or encrypted, as PyTorch never writes it; load it with transformers and \
                 `save_pretrained` it"
            ))),
            None => Err(wrong("specified file not found in archive")),
        }
    }
}

/// The tensor of a parameter that has attributes of its own; candle knows plain parameters only.
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

/// What `torch.save` was given: the state itself, or that of a scripted module.
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

fn bytes_of(layout: &Layout, size: usize) -> Option<u64> {
    let values = layout.dims().iter().try_fold(1usize, |values, dim| values.checked_mul(*dim))?;
    Some(values.checked_mul(size)? as u64)
}

/// The list of members, which stands at the end of the file.
fn members(file: &[u8]) -> Result<BTreeMap<String, Member>> {
    let mut zip = ZipArchive::new(Cursor::new(file)).map_err(wrong)?;
    let mut members = BTreeMap::new();
    for i in 0..zip.len() {
        let member = zip.by_index_raw(i).map_err(wrong)?;
        let Some(start) = member.data_start() else { return Err(wrong("invalid Zip archive: a member has no data")) };
        let is_stored = member.compression() == CompressionMethod::Stored
            && !member.encrypted()
            && member.size() == member.compressed_size();
        let name = member.name().map_err(wrong)?.into_owned();
        members.insert(name, Member { start, size: member.size(), is_stored });
    }
    Ok(members)
}

fn wrong(problem: impl Display) -> Error {
    Error::Msg(problem.to_string())
}
