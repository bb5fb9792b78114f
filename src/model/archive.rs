//! PyTorch's archives: a zip file whose members are not compressed, one of which is a pickle that says which tensors
//! there are, and where.
//!
//! candle's interpreter reads the pickle; it knows the few instructions that tensors need, and executes nothing. It
//! trusts the file to be of an honest size, though: a member that is compressed, or a few bytes that copy themselves,
//! could take all memory. So members are found and bounded here, and [`pickle`](super::pickle) weighs what the
//! instructions would make before they are followed.
//!
//! **Source**: APPNOTE.TXT 6.3.10 (zip), `torch/csrc/jit/serialization` of PyTorch (what it writes).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use candle_core::pickle::{Object, Stack, TensorInfo};
use candle_core::{Device, Error, Layout, Result, Tensor};

use super::pickle;

/// The largest list of members, and the largest pickle, in bytes: those of real models have less than one.
const MOST_BYTES: u64 = 64 << 20;

/// An archive and its tensors.
pub(super) struct Archive {
    path: PathBuf,
    members: BTreeMap<String, Member>,
    tensors: BTreeMap<String, TensorInfo>,
}

/// A file in the archive.
struct Member {
    /// Where its own header is.
    header: u64,
    /// Its bytes.
    size: u64,
    is_stored: bool,
}

impl Archive {
    /// Reads which tensors there are.
    ///
    /// # Errors
    /// A file that is no such archive, or one that would take more memory than an honest one.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let mut file = File::open(path)?;
        let mut archive = Self { path: path.to_owned(), members: members(&mut file)?, tensors: BTreeMap::new() };
        let pickles: Vec<String> = archive.members.keys().filter(|name| name.ends_with("data.pkl")).cloned().collect();
        for name in &pickles {
            let (start, size) = archive.place(&mut file, name)?;
            if size > MOST_BYTES {
                return Err(wrong(format!("{name} has {size} bytes, and at most {MOST_BYTES} are read")));
            }
            let pickle = read_at(&mut file, start, size)?;
            pickle::check(&pickle).map_err(wrong)?;
            let mut stack = Stack::empty();
            stack.read_loop(&mut &pickle[..])?;
            let folder = Path::new(name.strip_suffix(".pkl").unwrap_or(name));
            let Object::Dict(entries) = state_of(stack.finalize()?) else { continue };
            for (name, value) in entries {
                match value.into_tensor_info(name, folder) {
                    Ok(Some(tensor)) => drop(archive.tensors.insert(tensor.name.clone(), tensor)),
                    // What is no tensor is not needed.
                    Ok(None) => {}
                    Err(e) => tracing::debug!("{}: a tensor is left out: {e}", path.display()),
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
        let mut file = File::open(&self.path)?;
        let (start, size) = self.place(&mut file, &info.path)?;
        // candle gives the offset in bytes.
        let offset = layout.start_offset() as u64;
        let bytes = bytes_of(layout, info.dtype.size_in_bytes());
        let end = bytes.and_then(|bytes| offset.checked_add(bytes)).filter(|end| *end <= size);
        let (Some(bytes), Some(_)) = (bytes, end) else {
            return Err(wrong("failed to fill whole buffer"));
        };
        let values = read_at(&mut file, start + offset, bytes)?;
        let shape = layout.dims();
        if !is_reversed {
            return Tensor::from_raw_buffer(&values, info.dtype, shape, &Device::Cpu).map(Some);
        }
        let reversed: Vec<usize> = shape.iter().rev().copied().collect();
        let order: Vec<usize> = (0..shape.len()).rev().collect();
        Tensor::from_raw_buffer(&values, info.dtype, &reversed, &Device::Cpu)?.permute(order).map(Some)
    }

    /// Where the bytes of a member begin, and how many they are: all of them are in the file.
    fn place(&self, file: &mut File, name: &str) -> Result<(u64, u64)> {
        let Some(member) = self.members.get(name) else { return Err(wrong("specified file not found in archive")) };
        if !member.is_stored {
            let problem = "is compressed or encrypted, as PyTorch never writes it; load it with transformers and \
                           `save_pretrained` it";
            return Err(wrong(format!("{name} {problem}")));
        }
        let header = read_at(file, member.header, 30)?;
        if !header.starts_with(b"PK\x03\x04") {
            return Err(wrong("invalid Zip archive: a member is not where it should be"));
        }
        let start = member.header + 30 + u64::from(u16_at(&header, 26)) + u64::from(u16_at(&header, 28));
        let end = start.checked_add(member.size);
        match end.filter(|end| file.metadata().is_ok_and(|file| *end <= file.len())) {
            Some(_) => Ok((start, member.size)),
            None => Err(wrong("failed to fill whole buffer")),
        }
    }
}

/// What `torch.save` was given: the state itself, or that of a scripted module.
fn state_of(object: Object) -> Object {
    match object {
        Object::Build { callable, args } => match *callable {
            Object::Reduce { callable, .. } if is_module(&callable) => *args,
            _ => Object::None,
        },
        object => object,
    }
}

fn is_module(object: &Object) -> bool {
    matches!(object, Object::Class { module_name, class_name } if module_name == "__torch__" && class_name == "Module")
}

fn bytes_of(layout: &Layout, size: usize) -> Option<u64> {
    let values = layout.dims().iter().try_fold(1usize, |values, dim| values.checked_mul(*dim))?;
    Some(values.checked_mul(size)? as u64)
}

/// The list of members, which stands at the end of the file.
fn members(file: &mut File) -> Result<BTreeMap<String, Member>> {
    let no_end = || wrong("invalid Zip archive: Could not find EOCD");
    let length = file.metadata()?.len();
    // The end has 22 bytes and a comment, of which nobody knows the length beforehand.
    let tail_length = length.min(22 + u64::from(u16::MAX));
    let tail = read_at(file, length - tail_length, tail_length)?;
    let is_end = |at: &usize| {
        tail[*at..].starts_with(b"PK\x05\x06") && at + 22 + usize::from(u16_at(&tail, at + 20)) == tail.len()
    };
    let at = (0..tail.len().saturating_sub(21)).rev().find(is_end).ok_or_else(no_end)?;
    let (mut entries, mut size, mut start) =
        (u64::from(u16_at(&tail, at + 10)), u64::from(u32_at(&tail, at + 12)), u64::from(u32_at(&tail, at + 16)));
    // What large archives have before it, and PyTorch always writes.
    if let Some(large) = at.checked_sub(20).filter(|large| tail[*large..].starts_with(b"PK\x06\x07")) {
        let record = read_at(file, u64_at(&tail, large + 8), 56)?;
        if !record.starts_with(b"PK\x06\x06") {
            return Err(no_end());
        }
        (entries, size, start) = (u64_at(&record, 32), u64_at(&record, 40), u64_at(&record, 48));
    }
    if size > MOST_BYTES || start.checked_add(size).is_none_or(|end| end > length) {
        return Err(wrong("invalid Zip archive: its list of members is not in the file"));
    }
    let list = read_at(file, start, size)?;
    let mut members = BTreeMap::new();
    let mut rest = &list[..];
    for _ in 0..entries {
        let (name, member, after) =
            entry(rest).ok_or_else(|| wrong("invalid Zip archive: its list of members is damaged"))?;
        members.insert(name, member);
        rest = after;
    }
    Ok(members)
}

/// The first member of a list, and the list behind it.
fn entry(list: &[u8]) -> Option<(String, Member, &[u8])> {
    let head = list.get(..46).filter(|head| head.starts_with(b"PK\x01\x02"))?;
    let (flags, method) = (u16_at(head, 8), u16_at(head, 10));
    let [name, extra, comment] = [28, 30, 32].map(|at| usize::from(u16_at(head, at)));
    let (name, rest) = list[46..].split_at_checked(name)?;
    let (extra, rest) = rest.split_at_checked(extra)?;
    let (_, rest) = rest.split_at_checked(comment)?;
    // Numbers that do not fit into 32 bits stand in a field of their own, in this order.
    let mut large = large_numbers(extra);
    let mut number = |at: usize| match u32_at(head, at) {
        u32::MAX => large.next(),
        small => Some(small.into()),
    };
    let (size, packed, header) = (number(24)?, number(20)?, number(42)?);
    let is_stored = method == 0 && flags & 1 == 0 && size == packed;
    Some((String::from_utf8_lossy(name).into_owned(), Member { header, size, is_stored }, rest))
}

/// The numbers in the field of large ones.
fn large_numbers(mut extra: &[u8]) -> impl Iterator<Item = u64> {
    let mut numbers: &[u8] = &[];
    while extra.len() >= 4 {
        let (kind, length) = (u16_at(extra, 0), usize::from(u16_at(extra, 2)));
        let Some((field, rest)) = extra[4..].split_at_checked(length) else { break };
        if kind == 1 {
            numbers = field;
            break;
        }
        extra = rest;
    }
    numbers.chunks_exact(8).map(|number| u64_at(number, 0))
}

/// Bytes of the file, which must be in it: memory is taken before they are read.
fn read_at(file: &mut File, start: u64, size: u64) -> Result<Vec<u8>> {
    let fits = start.checked_add(size).is_some_and(|end| file.metadata().is_ok_and(|file| end <= file.len()));
    let size = usize::try_from(size).ok().filter(|_| fits).ok_or_else(|| wrong("failed to fill whole buffer"))?;
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = vec![0; size];
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    *bytes[at..].first_chunk().expect("whoever asks has seen to the length")
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes_at(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes_at(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes_at(bytes, at))
}

fn wrong(problem: impl Into<String>) -> Error {
    Error::Msg(problem.into())
}
