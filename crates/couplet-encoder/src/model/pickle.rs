//! What the instructions of a pickle would make, weighed before candle's interpreter follows them.
//!
//! An instruction that fetches a remembered object makes a copy of it, all that is in it included: forty of them in a
//! chain, each of two bytes, stand for more than any memory holds. And objects in objects in objects are more than the
//! stack holds when they are dropped. Both end the process, which no error can catch.
//!
//! **Source**: `Lib/pickletools.py` of Python, `candle_core::pickle`, of which this is the shadow.

use std::collections::HashMap;

/// The objects at most that may be made, copies included: a checkpoint takes less than a hundred for a tensor.
const MOST: u64 = 1 << 21;

/// How deep objects may be nested: tensors are five deep.
const DEEPEST: u32 = 100;

/// Bytes of a text that weigh as much as an object.
const TEXT: usize = 64;

/// An object: how many there are in it, with itself, and how deep.
#[derive(Debug, Clone, Copy)]
struct Weight {
    objects: u64,
    depth: u32,
    is_mark: bool,
}

impl Weight {
    fn of_text(bytes: usize) -> Self {
        Self { objects: 1 + (bytes / TEXT) as u64, depth: 1, is_mark: false }
    }

    /// An object that these are in.
    fn around(parts: impl IntoIterator<Item = Self>) -> Self {
        parts.into_iter().fold(Self::of_text(0), Self::with)
    }

    /// The object with another one in it.
    fn with(self, part: Self) -> Self {
        Self {
            objects: self.objects.saturating_add(part.objects),
            depth: self.depth.max(part.depth.saturating_add(1)),
            is_mark: false,
        }
    }
}

/// Refuses a pickle that would take too much memory. What is wrong with it otherwise, following it will tell.
pub(super) fn check(pickle: &[u8]) -> Result<(), String> {
    let mut shadow = Shadow { rest: pickle, stack: Vec::new(), memo: HashMap::new(), made: 0 };
    // Where the shadow cannot go on, neither can the interpreter.
    while shadow.step().is_some() {
        if shadow.made > MOST {
            return Err(format!("its pickle stands for more than {MOST} objects, which no checkpoint needs"));
        }
        if shadow.stack.last().is_some_and(|top| top.depth > DEEPEST) {
            return Err(format!("its pickle nests objects more than {DEEPEST} deep, which no checkpoint needs"));
        }
    }
    Ok(())
}

struct Shadow<'p> {
    rest: &'p [u8],
    stack: Vec<Weight>,
    memo: HashMap<u32, Weight>,
    made: u64,
}

impl Shadow<'_> {
    /// Follows one instruction; none at the end, or at what the interpreter would refuse.
    fn step(&mut self) -> Option<()> {
        let instruction = self.bytes(1)?[0];
        match instruction {
            // The version.
            0x80 => {
                self.bytes(1)?;
            }
            b'c' => {
                let length = self.line()? + self.line()?;
                self.push(Weight::of_text(length));
            }
            // Numbers of one, two, four and eight bytes, true, false, None, and what is empty, for which the interpreter
            // takes `d` too.
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
                self.push(Weight::of_text(length));
            }
            b'(' => self.push(Weight { is_mark: true, ..Weight::of_text(0) }),
            b't' => {
                let parts = self.pop_mark()?;
                self.push_around(parts);
            }
            b'Q' | 0x85 => self.wrap(1)?,
            0x86 | b'R' | b'b' | 0x81 => self.wrap(2)?,
            0x87 => self.wrap(3)?,
            b'a' => self.insert(1)?,
            b's' => self.insert(2)?,
            b'e' | b'u' => {
                let parts = self.pop_mark()?;
                self.add(parts)?;
            }
            // Of one byte, or of four.
            b'h' | b'j' => {
                let place = if instruction == b'h' { self.bytes(1)?[0].into() } else { self.number()? };
                self.fetch(place)?;
            }
            b'q' | b'r' => {
                let place = if instruction == b'q' { self.bytes(1)?[0].into() } else { self.number()? };
                self.remember(place)?;
            }
            // The end, and what is unknown.
            _ => return None,
        }
        Some(())
    }

    fn bytes(&mut self, n: usize) -> Option<&[u8]> {
        let (bytes, rest) = self.rest.split_at_checked(n)?;
        self.rest = rest;
        Some(bytes)
    }

    fn number(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(*self.bytes(4)?.first_chunk()?))
    }

    /// The bytes of a line; the last may be without an end.
    fn line(&mut self) -> Option<usize> {
        let length = self.rest.iter().position(|byte| *byte == b'\n').map_or(self.rest.len(), |end| end + 1);
        self.bytes(length).map(<[u8]>::len)
    }

    /// An object without parts.
    fn push(&mut self, weight: Weight) {
        self.made = self.made.saturating_add(weight.objects);
        self.stack.push(weight);
    }

    /// Pushes a value without members that takes `bytes` bytes.
    fn leaf(&mut self, bytes: usize) -> Option<()> {
        self.bytes(bytes)?;
        self.push(Weight::of_text(0));
        Some(())
    }

    /// An object around parts that are made already.
    fn push_around(&mut self, parts: Vec<Weight>) {
        self.made += 1;
        self.stack.push(Weight::around(parts));
    }

    /// An object around the last `n`.
    fn wrap(&mut self, n: usize) -> Option<()> {
        let at = self.stack.len().checked_sub(n)?;
        let parts = self.stack.split_off(at);
        self.push_around(parts);
        Some(())
    }

    /// The last `n` into the one before.
    fn insert(&mut self, n: usize) -> Option<()> {
        let at = self.stack.len().checked_sub(n)?;
        let parts = self.stack.split_off(at);
        self.add(parts)
    }

    fn add(&mut self, parts: Vec<Weight>) -> Option<()> {
        let top = self.stack.last_mut()?;
        *top = parts.into_iter().fold(*top, Weight::with);
        Some(())
    }

    fn pop_mark(&mut self) -> Option<Vec<Weight>> {
        let mark = self.stack.iter().rposition(|weight| weight.is_mark)?;
        let parts = self.stack.split_off(mark + 1);
        self.stack.pop();
        Some(parts)
    }

    /// A copy of what is remembered.
    fn fetch(&mut self, place: u32) -> Option<()> {
        let weight = *self.memo.get(&place)?;
        self.made = self.made.saturating_add(weight.objects);
        self.stack.push(weight);
        Some(())
    }

    /// A copy of the last to be remembered.
    fn remember(&mut self, place: u32) -> Option<()> {
        let weight = *self.stack.last()?;
        self.made = self.made.saturating_add(weight.objects);
        self.memo.insert(place, weight);
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(place: u8) -> [u8; 2] {
        [b'q', place]
    }

    #[test]
    fn what_copies_itself_is_refused() {
        // A list, then forty times a tuple of two copies of what came before.
        let mut pickle = vec![0x80, 2, b']'];
        pickle.extend(put(0));
        for place in 1..=40 {
            pickle.extend([b'h', place - 1, b'h', place - 1, 0x86]);
            pickle.extend(put(place));
        }
        pickle.push(b'.');
        assert!(check(&pickle).unwrap_err().contains("more than 2097152 objects"));
        // A long text, often.
        let mut pickle = [b"\x80\x02X".as_slice(), &100_000u32.to_le_bytes(), &b"a".repeat(100_000), &put(0)].concat();
        pickle.extend(b"h\0".repeat(10_000));
        assert!(check(&pickle).is_err());
        // A large list that is remembered again and again.
        let mut pickle = b"](".to_vec();
        pickle.extend(b"N".repeat(100_000));
        pickle.push(b'e');
        pickle.extend(put(0).repeat(100));
        assert!(check(&pickle).is_err());
    }

    #[test]
    fn what_is_nested_deeply_is_refused() {
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
    fn what_is_no_pickle_is_left_to_the_interpreter() {
        for pickle in [b"".as_slice(), b"\xff", b"a", b"t", b"h\x07", b"X\xff\xff\xff\xffabc", b"cposix", b"K"] {
            assert!(check(pickle).is_ok(), "{pickle:?}");
        }
    }
}
