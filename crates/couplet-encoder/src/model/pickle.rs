//! Checks a pickle for excessive memory use and nesting before candle's interpreter runs it.
//!
//! In that interpreter, an opcode that fetches an object from the memo makes a deep copy. A chain of forty such
//! opcodes, two bytes each, can exhaust any memory. Dropping deeply nested objects can overflow the stack. Both abort
//! the process and cannot be caught as errors. The check executes the same opcodes, but tracks only the number and
//! depth of objects.
//!
//! **Source**: `Lib/pickletools.py` of Python, and `candle_core::pickle`, which this module mirrors.

use std::collections::HashMap;

/// The most objects that may be created, copies included. A checkpoint needs fewer than a hundred per tensor.
const MAX_OBJECTS: u64 = 1 << 21;

/// The deepest nesting of objects. Tensors have five levels.
const MAX_DEPTH: u32 = 100;

/// The number of bytes of a string that count as one object.
const STRING_BYTES: usize = 64;

/// The cost of an object: the number of objects in it, itself included, and their depth.
#[derive(Debug, Clone, Copy)]
struct Cost {
    objects: u64,
    depth: u32,
    /// True for the mark that starts a group of objects on the stack.
    is_mark: bool,
}

impl Cost {
    /// Returns the cost of an object without members that holds a string of `bytes` bytes.
    fn of_text(bytes: usize) -> Self {
        Self { objects: 1 + (bytes / STRING_BYTES) as u64, depth: 1, is_mark: false }
    }

    /// Returns the cost of a new object with these members.
    fn containing(members: impl IntoIterator<Item = Self>) -> Self {
        members.into_iter().fold(Self::of_text(0), Self::with)
    }

    /// Returns the cost of the object with one more member.
    fn with(self, part: Self) -> Self {
        Self {
            objects: self.objects.saturating_add(part.objects),
            depth: self.depth.max(part.depth.saturating_add(1)),
            is_mark: false,
        }
    }
}

/// Returns an error if a pickle creates too many objects or nests them too deeply. Other errors are left to the
/// interpreter.
pub(super) fn check(pickle: &[u8]) -> Result<(), String> {
    let mut simulation = Simulation { rest: pickle, stack: Vec::new(), memo: HashMap::new(), created: 0 };
    // An opcode that stops this simulation also stops the interpreter.
    while simulation.step().is_some() {
        if simulation.created > MAX_OBJECTS {
            return Err(format!("its pickle stands for more than {MAX_OBJECTS} objects, which no checkpoint needs"));
        }
        if simulation.stack.last().is_some_and(|top| top.depth > MAX_DEPTH) {
            return Err(format!("its pickle nests objects more than {MAX_DEPTH} deep, which no checkpoint needs"));
        }
    }
    Ok(())
}

/// The state of the simulated interpreter.
struct Simulation<'p> {
    rest: &'p [u8],
    stack: Vec<Cost>,
    memo: HashMap<u32, Cost>,
    /// The number of objects created so far.
    created: u64,
}

impl Simulation<'_> {
    /// Executes one opcode. Returns `None` at the end, or at an opcode that the interpreter rejects.
    fn step(&mut self) -> Option<()> {
        let opcode = self.bytes(1)?[0];
        match opcode {
            // The protocol version.
            0x80 => {
                self.bytes(1)?;
            }
            b'c' => {
                let length = self.line()? + self.line()?;
                self.push(Cost::of_text(length));
            }
            // Numbers of one, two, four and eight bytes, true, false, None, and empty collections. The interpreter also
            // treats `d` as an empty dictionary.
            b'K' => self.leaf(1)?,
            b'M' => self.leaf(2)?,
            b'J' => self.leaf(4)?,
            b'G' => self.leaf(8)?,
            0x88 | 0x89 | b'N' | b')' | b']' | b'}' | b'd' => self.leaf(0)?,
            0x8a => {
                let length = usize::from(self.bytes(1)?[0]);
                self.leaf(length)?;
            }
            b'X' => {
                let length = usize::try_from(self.number()?).ok()?;
                self.bytes(length)?;
                self.push(Cost::of_text(length));
            }
            b'(' => self.push(Cost { is_mark: true, ..Cost::of_text(0) }),
            b't' => {
                let members = self.pop_mark()?;
                self.push_containing(members);
            }
            b'Q' | 0x85 => self.wrap(1)?,
            0x86 | b'R' | b'b' | 0x81 => self.wrap(2)?,
            0x87 => self.wrap(3)?,
            b'a' => self.insert(1)?,
            b's' => self.insert(2)?,
            b'e' | b'u' => {
                let members = self.pop_mark()?;
                self.add(members)?;
            }
            // Gets and puts of the memo, with an index of one byte or four bytes.
            b'h' | b'j' => {
                let index = if opcode == b'h' { self.bytes(1)?[0].into() } else { self.number()? };
                self.get(index)?;
            }
            b'q' | b'r' => {
                let index = if opcode == b'q' { self.bytes(1)?[0].into() } else { self.number()? };
                self.put(index)?;
            }
            // The end, or an unknown opcode.
            _ => return None,
        }
        Some(())
    }

    /// Reads the next `n` bytes.
    fn bytes(&mut self, n: usize) -> Option<&[u8]> {
        let (bytes, rest) = self.rest.split_at_checked(n)?;
        self.rest = rest;
        Some(bytes)
    }

    /// Reads a little-endian u32.
    fn number(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(*self.bytes(4)?.first_chunk()?))
    }

    /// Reads a line and returns its length in bytes. The last line may lack the line end.
    fn line(&mut self) -> Option<usize> {
        let length = self.rest.iter().position(|byte| *byte == b'\n').map_or(self.rest.len(), |end| end + 1);
        self.bytes(length).map(<[u8]>::len)
    }

    /// Pushes a new object without members.
    fn push(&mut self, cost: Cost) {
        self.created = self.created.saturating_add(cost.objects);
        self.stack.push(cost);
    }

    /// Pushes a value without members that takes `bytes` bytes.
    fn leaf(&mut self, bytes: usize) -> Option<()> {
        self.bytes(bytes)?;
        self.push(Cost::of_text(0));
        Some(())
    }

    /// Pushes a new object with existing members.
    fn push_containing(&mut self, members: Vec<Cost>) {
        self.created += 1;
        self.stack.push(Cost::containing(members));
    }

    /// Replaces the top `n` objects by a new object that contains them.
    fn wrap(&mut self, n: usize) -> Option<()> {
        let at = self.stack.len().checked_sub(n)?;
        let members = self.stack.split_off(at);
        self.push_containing(members);
        Some(())
    }

    /// Adds the top `n` objects to the object below them.
    fn insert(&mut self, n: usize) -> Option<()> {
        let at = self.stack.len().checked_sub(n)?;
        let members = self.stack.split_off(at);
        self.add(members)
    }

    /// Adds members to the top object.
    fn add(&mut self, members: Vec<Cost>) -> Option<()> {
        let top = self.stack.last_mut()?;
        *top = members.into_iter().fold(*top, Cost::with);
        Some(())
    }

    /// Pops all objects above the last mark, and the mark.
    fn pop_mark(&mut self) -> Option<Vec<Cost>> {
        let mark = self.stack.iter().rposition(|cost| cost.is_mark)?;
        let members = self.stack.split_off(mark + 1);
        self.stack.pop();
        Some(members)
    }

    /// Pushes a copy of an object in the memo.
    fn get(&mut self, index: u32) -> Option<()> {
        let cost = *self.memo.get(&index)?;
        self.created = self.created.saturating_add(cost.objects);
        self.stack.push(cost);
        Some(())
    }

    /// Stores a copy of the top object in the memo.
    fn put(&mut self, index: u32) -> Option<()> {
        let cost = *self.stack.last()?;
        self.created = self.created.saturating_add(cost.objects);
        self.memo.insert(index, cost);
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(index: u8) -> [u8; 2] {
        [b'q', index]
    }

    #[test]
    fn rejects_repeated_copies() {
        // A list, then forty nested tuples, each of two copies of the previous object.
        let mut pickle = vec![0x80, 2, b']'];
        pickle.extend(put(0));
        for index in 1..=40 {
            pickle.extend([b'h', index - 1, b'h', index - 1, 0x86]);
            pickle.extend(put(index));
        }
        pickle.push(b'.');
        assert!(check(&pickle).unwrap_err().contains("more than 2097152 objects"));
        // Many copies of a long string.
        let mut pickle = [b"\x80\x02X".as_slice(), &100_000u32.to_le_bytes(), &b"a".repeat(100_000), &put(0)].concat();
        pickle.extend(b"h\0".repeat(10_000));
        assert!(check(&pickle).is_err());
        // A large list that is stored in the memo many times.
        let mut pickle = b"](".to_vec();
        pickle.extend(b"N".repeat(100_000));
        pickle.push(b'e');
        pickle.extend(put(0).repeat(100));
        assert!(check(&pickle).is_err());
    }

    #[test]
    fn rejects_deep_nesting() {
        let nested = |depth: usize| [b")".as_slice(), &b"\x85".repeat(depth), b"."].concat();
        assert!(check(&nested(90)).is_ok());
        assert!(check(&nested(1_000_000)).unwrap_err().contains("100 deep"));
        let lists = |depth: usize| [b"]".repeat(depth), b"a".repeat(depth - 1), b".".to_vec()].concat();
        assert!(check(&lists(90)).is_ok());
        assert!(check(&lists(100_000)).is_err());
        let marks = [b"(".repeat(100_000), b"t".repeat(100_000)].concat();
        assert!(check(&marks).is_err());
    }

    #[test]
    fn leaves_invalid_pickles_to_the_interpreter() {
        for pickle in [b"".as_slice(), b"\xff", b"a", b"t", b"h\x07", b"X\xff\xff\xff\xffabc", b"cposix", b"K"] {
            assert!(check(pickle).is_ok(), "{pickle:?}");
        }
    }
}
