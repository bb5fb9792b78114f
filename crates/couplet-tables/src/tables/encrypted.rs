//! Detects encrypted Parquet files by their footer. The reader itself only reports a broken page.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};

/// The magic bytes at the end of a file with an encrypted footer.
const MAGIC: &[u8; 4] = b"PARE";

/// The id of the footer field that names the encryption algorithm of the columns.
const ENCRYPTION_ALGORITHM: i64 = 8;

/// The Thrift type that ends a struct.
const STOP: u8 = 0;

/// The maximum nesting depth of a footer.
const DEPTH: usize = 32;

/// Returns true if the file or some of its columns are encrypted.
pub(super) fn is_encrypted(mut file: &File) -> bool {
    let mut end = [0; 8];
    let read = file.seek(SeekFrom::End(-8)).and_then(|_| file.read_exact(&mut end));
    let [a, b, c, d, magic @ ..] = end;
    if read.is_err() || magic == *MAGIC {
        return read.is_ok();
    }
    let length = u32::from_le_bytes([a, b, c, d]);
    let mut footer = Vec::new();
    let read = file.seek(SeekFrom::End(-8 - i64::from(length)));
    read.and_then(|_| file.take(length.into()).read_to_end(&mut footer)).is_ok()
        && names_encryption(&mut footer.as_slice()).unwrap_or(false)
}

/// Returns true if a footer (a struct in Thrift's compact protocol) has the field; none if the footer is cut short.
fn names_encryption(footer: &mut &[u8]) -> Option<bool> {
    let mut last = 0;
    loop {
        match field(footer, last)? {
            (_, STOP) => return Some(false),
            (ENCRYPTION_ALGORITHM, _) => return Some(true),
            (id, kind) => {
                skip(footer, kind, DEPTH)?;
                last = id;
            }
        }
    }
}

/// Returns the id and the type of the next field, or [`STOP`].
fn field(bytes: &mut &[u8], last: i64) -> Option<(i64, u8)> {
    let head = byte(bytes)?;
    Some(match (head >> 4, head & 0xf) {
        (_, STOP) => (0, STOP),
        (0, kind) => {
            let number = i64::try_from(varint(bytes)?).ok()?;
            ((number >> 1) ^ -(number & 1), kind)
        }
        (further, kind) => (last + i64::from(further), kind),
    })
}

fn skip(bytes: &mut &[u8], kind: u8, depth: usize) -> Option<()> {
    let depth = depth.checked_sub(1)?;
    match kind {
        // The type of a boolean field is its value.
        1 | 2 => {}
        3 => byte(bytes).map(drop)?,
        4..=6 => varint(bytes).map(drop)?,
        7 => *bytes = bytes.get(8..)?,
        8 => {
            let length = usize::try_from(varint(bytes)?).ok()?;
            *bytes = bytes.get(length..)?;
        }
        9 | 10 => {
            let head = byte(bytes)?;
            let length = if head >> 4 == 15 { varint(bytes)? } else { u64::from(head >> 4) };
            for _ in 0..length {
                // In a list, each boolean takes a byte.
                if matches!(head & 0xf, 1 | 2) { byte(bytes).map(drop)? } else { skip(bytes, head & 0xf, depth)? }
            }
        }
        12 => {
            let mut last = 0;
            loop {
                let (id, kind) = field(bytes, last)?;
                if kind == STOP {
                    break;
                }
                skip(bytes, kind, depth)?;
                last = id;
            }
        }
        // Footers contain no maps.
        _ => return None,
    }
    Some(())
}

fn byte(bytes: &mut &[u8]) -> Option<u8> {
    let (first, rest) = bytes.split_first()?;
    *bytes = rest;
    Some(*first)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = byte(bytes)?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_field_of_encryption_is_found_behind_others() {
        // 1: version 2, 2: a list of a struct with a name, 3: rows, 6: a string; then 8, or nothing.
        let footer = [0x15, 4, 0x19, 0x1c, 0x48, 1, b'x', 0, 0x16, 200, 1, 0x38, 2, b'a', b'b'];
        let with = |more: &[u8]| [&footer[..], more].concat();
        assert_eq!(names_encryption(&mut with(&[0x2c, 0x1c, 0, 0, 0]).as_slice()), Some(true));
        assert_eq!(names_encryption(&mut with(&[0]).as_slice()), Some(false));
        assert_eq!(names_encryption(&mut with(&[]).as_slice()), None);
        let deep = vec![0x1c; 1000];
        assert_eq!(names_encryption(&mut deep.as_slice()), None);
    }
}
