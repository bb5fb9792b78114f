//! Safetensors files, written as a stream.
//!
//! The `safetensors` crate writes to a path or into memory. States of a training are three times as large as the model,
//! and go into a file that becomes visible when it is complete: they are written tensor by tensor instead.
//!
//! **Source**: the format's description in the README of huggingface/safetensors.

use std::io::{self, Write};

use candle_core::Tensor;
use serde_json::{Map, Value, json};

/// A tensor of a file.
pub struct Entry<'a> {
    /// The name of the tensor.
    pub name: String,
    /// The shape of the tensor.
    pub shape: Vec<usize>,
    /// The values in row-major order.
    pub data: Data<'a>,
}

/// The numbers of a tensor.
pub enum Data<'a> {
    /// f32, wherever it lies.
    Tensor(&'a Tensor),
    /// 32-bit floats.
    F32(&'a [f32]),
    /// 64-bit integers.
    I64(Vec<i64>),
    /// Bytes.
    U8(Vec<u8>),
}

impl<'a> Entry<'a> {
    /// Returns an entry with the values of an f32 tensor.
    #[must_use]
    pub fn of_tensor(name: String, tensor: &'a Tensor) -> Self {
        Self { name, shape: tensor.dims().to_vec(), data: Data::Tensor(tensor) }
    }

    /// A tensor of one dimension.
    #[must_use]
    pub fn row(name: &str, data: Data<'a>) -> Self {
        let length = match &data {
            Data::Tensor(tensor) => tensor.elem_count(),
            Data::F32(values) => values.len(),
            Data::I64(values) => values.len(),
            Data::U8(values) => values.len(),
        };
        Self { name: name.to_owned(), shape: vec![length], data }
    }

    /// Its type's name, and the bytes of a number.
    fn kind(&self) -> (&'static str, usize) {
        match self.data {
            Data::Tensor(_) | Data::F32(_) => ("F32", 4),
            Data::I64(_) => ("I64", 8),
            Data::U8(_) => ("U8", 1),
        }
    }

    fn write(&self, file: &mut impl Write) -> io::Result<()> {
        match &self.data {
            Data::Tensor(tensor) => {
                let values = tensor.flatten_all().and_then(|values| values.to_vec1::<f32>());
                write_all(file, &values.map_err(io::Error::other)?, f32::to_le_bytes)
            }
            Data::F32(values) => write_all(file, values, f32::to_le_bytes),
            Data::I64(values) => write_all(file, values, i64::to_le_bytes),
            Data::U8(values) => file.write_all(values),
        }
    }
}

/// Writes a file; the same entries give the same bytes.
///
/// # Errors
/// What the file says; a device that does not give its numbers.
pub fn write(mut entries: Vec<Entry>, file: &mut impl Write) -> io::Result<()> {
    // Larger numbers first, so that all of them are aligned.
    entries.sort_by(|a, b| b.kind().1.cmp(&a.kind().1).then_with(|| a.name.cmp(&b.name)));
    let mut header = Map::new();
    // transformers asks who wrote the file.
    header.insert("__metadata__".into(), json!({ "format": "pt" }));
    let mut end = 0;
    for entry in &entries {
        let (dtype, bytes) = entry.kind();
        let start = end;
        end += entry.shape.iter().product::<usize>() * bytes;
        header
            .insert(entry.name.clone(), json!({ "dtype": dtype, "shape": entry.shape, "data_offsets": [start, end] }));
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    entries.iter().try_for_each(|entry| entry.write(file))
}

fn write_all<T: Copy, const N: usize>(
    file: &mut impl Write,
    values: &[T],
    bytes: impl Fn(T) -> [u8; N],
) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(N << 13);
    for chunk in values.chunks(1 << 13) {
        buffer.clear();
        buffer.extend(chunk.iter().flat_map(|value| bytes(*value)));
        file.write_all(&buffer)?;
    }
    Ok(())
}
