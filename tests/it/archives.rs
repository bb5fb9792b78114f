//! Malicious PyTorch archives: small files that would exhaust memory, and offsets outside their storage.

use crate::fuzz_targets::{archive, members};
use crate::support::golden;
use crate::tiny::{ARCHIVE, Variant};

fn model() -> Vec<u8> {
    std::fs::read(golden("tiny-bert-bin").join(ARCHIVE)).unwrap()
}

fn of(bytes: Vec<u8>) -> Variant {
    Variant::of("tiny-bert-bin").with(ARCHIVE, bytes)
}

fn of_pickle(pickle: &[u8]) -> String {
    of(archive(&[("archive/data.pkl".into(), [b"\x80\x02", pickle, b"."].concat())])).error()
}

#[test]
fn a_pickle_that_copies_itself_is_refused() {
    // Sixty nested tuples, each with two copies of the previous one: 2^60 objects.
    let mut bomb = b"]q\0".to_vec();
    for place in 1..60 {
        bomb.extend([b'h', place - 1, b'h', place - 1, 0x86, b'q', place]);
    }
    insta::assert_snapshot!(of_pickle(&bomb), @"cannot read MODEL/pytorch_model.bin: it is truncated or not a PyTorch archive (its pickle stands for more than 2097152 objects, which no checkpoint needs)");
    // A million nested tuples, whose recursive drop would overflow the stack.
    let nested = [b")".as_slice(), &b"\x85".repeat(1_000_000)].concat();
    insta::assert_snapshot!(of_pickle(&nested), @"cannot read MODEL/pytorch_model.bin: it is truncated or not a PyTorch archive (its pickle nests objects more than 100 deep, which no checkpoint needs)");
}

#[test]
fn compressed_members_are_not_unpacked() {
    // The compression method of the directory's first entry (the pickle) and its claimed uncompressed size.
    let bytes = archive(&members(&model()));
    let entry = bytes.windows(4).position(|four| four == b"PK\x01\x02").unwrap();
    let mut deflated = bytes.clone();
    deflated[entry + 10] = 8;
    let mut larger = bytes.clone();
    larger[entry + 24..entry + 28].copy_from_slice(&u32::MAX.wrapping_sub(1).to_le_bytes());
    for changed in [deflated, larger] {
        let message = of(changed).error();
        assert!(message.contains("is compressed or encrypted, as PyTorch never writes it"), "{message}");
    }
    let mut beyond = bytes.clone();
    for at in [20, 24] {
        beyond[entry + at..entry + at + 4].copy_from_slice(&(u32::MAX - 1).to_le_bytes());
    }
    let message = of(beyond).error();
    assert!(message.contains("has 4294967294 bytes, and at most 67108864 are read"), "{message}");
    let mut moved = bytes;
    moved[entry + 42..entry + 46].copy_from_slice(&7u32.to_le_bytes());
    let message = of(moved).error();
    assert!(message.contains("Invalid local file header"), "{message}");
}

/// A tensor whose storage offset is negative or past the end.
#[test]
fn tensors_outside_of_their_storage_are_refused() {
    let with_offset = |offset: &[u8]| {
        let mut members = members(&model());
        let (_, pickle) = members.iter_mut().find(|(name, _)| name.ends_with("data.pkl")).unwrap();
        // Each tensor record has the storage offset `K\0` after `Q`. The first tensor holds positions and is not read.
        let mut tensors = pickle.windows(3).enumerate().filter(|(_, three)| three == b"QK\0");
        let at = tensors.nth(1).unwrap().0 + 1;
        pickle.splice(at..at + 2, offset.iter().copied());
        of(archive(&members))
    };
    assert!(with_offset(b"K\0").load().is_ok());
    for offset in
        [b"K\x01".as_slice(), b"J\xff\xff\xff\xff", b"J\xff\xff\xff\x7f", b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f"]
    {
        let message = with_offset(offset).error();
        // candle multiplies the offset by the element size; a debug build checks this for overflow.
        let expected = ["failed to fill whole buffer", "its pickle is not as PyTorch writes it"];
        assert!(expected.iter().any(|expected| message.contains(expected)), "{message}");
    }
}
