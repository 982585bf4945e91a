//! The shape of a frame's CBOR (RFC 8949), judged before anything is built of
//! it: one pass over the bytes, without recursion and without allocation.
//!
//! The limits are far above what frames need and far below what hurts: of the
//! 4 MiB that a frame may have, four million empty strings would become a
//! hundred megabytes of them. What is unknown here is judged by the same
//! limits and then skipped.

use super::frame::FrameError;

/// Maps, arrays and tags may nest this deep; the schema needs seven levels.
pub const MAX_DEPTH: usize = 16;
/// Items in one array, or pairs in one map, at most: above the holdings of an
/// inventory's part.
pub const MAX_COUNT: u64 = 1024;
/// Items in a whole frame at most: above those of an inventory's part with
/// room for fields to come.
pub const MAX_ITEMS: usize = 16 * 1024;
/// The longest text, in bytes. Byte strings are bounded by the frame.
pub const MAX_TEXT: u64 = 64 * 1024;

/// Checks that the bytes begin with one item within the limits; gives its
/// length in bytes.
///
/// # Errors
/// [`FrameError::Shape`] says which limit; [`FrameError::Malformed`] is for
/// what is cut off or not CBOR.
pub fn check(bytes: &[u8]) -> Result<usize, FrameError> {
    // Items that are still to come, by level.
    let mut open = [0u64; MAX_DEPTH];
    let mut depth = 0;
    let mut items = 0;
    let mut rest = bytes;
    loop {
        items += 1;
        if items > MAX_ITEMS {
            return Err(FrameError::Shape("more items in all than any frame needs"));
        }
        let (major, argument) = head(&mut rest)?;
        let children = match major {
            // Numbers; simple values and floats, whose argument is their value.
            0 | 1 | 7 => 0,
            // Bytes and text.
            2 | 3 => {
                if major == 3 && argument > MAX_TEXT {
                    return Err(FrameError::Shape("a longer text than any frame needs"));
                }
                let length = usize::try_from(argument).map_err(|_| cut())?;
                rest = rest.get(length..).ok_or_else(cut)?;
                0
            }
            // Arrays and maps.
            4 | 5 => {
                if argument > MAX_COUNT {
                    return Err(FrameError::Shape("more items in one place than any frame needs"));
                }
                argument * if major == 4 { 1 } else { 2 }
            }
            // A tag is followed by what it tags.
            _ => 1,
        };
        if children > 0 {
            *open.get_mut(depth).ok_or(FrameError::Shape("deeper nesting than any frame needs"))? = children;
            depth += 1;
            continue;
        }
        // This item is whole, and with it each level that it was the last of.
        while let Some(left) = depth.checked_sub(1).and_then(|at| open.get_mut(at)) {
            *left -= 1;
            if *left > 0 {
                break;
            }
            depth -= 1;
        }
        if depth == 0 {
            return Ok(bytes.len() - rest.len());
        }
    }
}

/// An item's major type and argument (RFC 8949 section 3).
fn head(rest: &mut &[u8]) -> Result<(u8, u64), FrameError> {
    let (first, mut tail) = rest.split_first().ok_or_else(cut)?;
    let size = match first & 0x1f {
        24 => 1,
        25 => 2,
        26 => 4,
        27 => 8,
        28..=30 => return Err(FrameError::Malformed("a reserved kind of CBOR item".into())),
        31 => return Err(FrameError::Malformed("an indefinite length".into())),
        _ => 0,
    };
    let argument = match size {
        0 => u64::from(first & 0x1f),
        _ => {
            let (bytes, behind) = tail.split_at_checked(size).ok_or_else(cut)?;
            tail = behind;
            bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
        }
    };
    *rest = tail;
    Ok((first >> 5, argument))
}

fn cut() -> FrameError {
    FrameError::Malformed("it ends before it is whole".into())
}

#[cfg(test)]
mod tests {
    use minicbor::Encoder;
    use minicbor::data::Type;
    use proptest::prelude::*;

    use super::super::frame::{Body, Frame, Hello, INVENTORY_PART, Inventory, MAX_FRAME, tests::samples};
    use super::super::frame::{Holding, WireKey};
    use super::*;

    /// What minicbor's own tokens say: items in all, and the deepest level. It
    /// also judges what is in texts and simple values.
    fn counted(bytes: &[u8]) -> Result<(usize, usize), minicbor::decode::Error> {
        let mut decoder = minicbor::Decoder::new(bytes);
        let (mut items, mut deepest) = (0, 0);
        let mut walk = vec![0];
        while let Some(depth) = walk.pop() {
            items += 1;
            deepest = deepest.max(depth);
            let children = match decoder.datatype()? {
                Type::Array => decoder.array()?.unwrap(),
                Type::Map => decoder.map()?.unwrap() * 2,
                Type::Tag => decoder.tag().map(|_| 1)?,
                _ => decoder.skip().map(|()| 0)?,
            };
            walk.extend((0..children).map(|_| depth + 1));
        }
        Ok((items, deepest))
    }

    fn is_shape(outcome: Result<Frame, FrameError>) -> bool {
        matches!(outcome, Err(FrameError::Shape(_)))
    }

    #[test]
    fn every_sample_is_far_within_the_limits() {
        for (name, frame) in samples() {
            let bytes = frame.encode();
            assert_eq!(check(&bytes), Ok(bytes.len()), "{name}");
            let (items, depth) = counted(&bytes).unwrap();
            assert!(
                items * 4 <= MAX_ITEMS && depth * 2 <= MAX_DEPTH,
                "{name}: {items} items, {depth} levels"
            );
        }
    }

    #[test]
    fn the_longest_part_of_an_inventory_fits() {
        let key = WireKey {
            group: "g".repeat(253),
            resource: "r".repeat(253),
            namespace: "n".repeat(63),
            name: "n".repeat(253),
        };
        let holding = Holding { key, uid: "u".repeat(128), hash: [255; 32] };
        let part = Inventory { holdings: vec![holding; INVENTORY_PART], last: true };
        let bytes = Frame { seq: u64::MAX, ack: u64::MAX, ..Frame::plain(Body::Inventory(part)) }.encode();
        assert_eq!(check(&bytes), Ok(bytes.len()));
        assert!(counted(&bytes).unwrap().0 * 4 <= MAX_ITEMS);
        assert!(Frame::decode(&bytes).is_ok());
    }

    #[test]
    fn four_million_empty_strings_are_not_built() {
        let mut encoder = Encoder::new(Vec::new());
        // {2: [0, [{7: ["", "", ...]}]], 3: true}: a Hello with features.
        encoder.map(2).unwrap().u8(2).unwrap().array(2).unwrap().u8(0).unwrap().array(1).unwrap();
        encoder.map(1).unwrap().u8(7).unwrap().array(4_000_000).unwrap();
        let mut bytes = encoder.into_writer();
        bytes.resize(bytes.len() + 4_000_000, 0x60);
        bytes.extend([0x03, 0xf5]);
        assert!(bytes.len() < MAX_FRAME && is_shape(Frame::decode(&bytes)));
        // Many arrays of the allowed length.
        let features = vec![String::new(); MAX_COUNT as usize];
        let hello = Frame::plain(Body::Hello(Hello { features, ..Hello::default() })).encode();
        assert!(Frame::decode(&hello).is_ok());
        let mut many = vec![0x98, 200];
        (0..200).for_each(|_| many.extend(&hello));
        assert_eq!(check(&many), Err(FrameError::Shape("more items in all than any frame needs")));
    }

    #[test]
    fn nesting_text_and_odd_items_are_refused() {
        assert!(matches!(check(&vec![0x81; 100_000]), Err(FrameError::Shape(_))));
        assert!(matches!(check(&vec![0xc1; 100_000]), Err(FrameError::Shape(_))), "tags");
        let nested = |levels: usize| [vec![0x81; levels], vec![0]].concat();
        assert_eq!(check(&nested(MAX_DEPTH)), Ok(MAX_DEPTH + 1));
        assert!(check(&nested(MAX_DEPTH + 1)).is_err());
        let text = |length: usize| {
            let mut encoder = Encoder::new(Vec::new());
            encoder.str(&"x".repeat(length)).unwrap();
            encoder.into_writer()
        };
        assert!(check(&text(MAX_TEXT as usize)).is_ok());
        assert!(matches!(check(&text(MAX_TEXT as usize + 1)), Err(FrameError::Shape(_))));
        // An indefinite array, a break, a reserved length, lengths that lie.
        let max = [0xff; 8];
        for bytes in
            [&[0x9f, 0xff][..], &[0xff], &[0x1c], &[0x42, 1], &[], &[0x1b, 1], &[&[0x5b][..], &max].concat()]
        {
            assert!(matches!(check(bytes), Err(FrameError::Malformed(_))), "{bytes:?}");
        }
        assert!(matches!(check(&[&[0x9b][..], &max].concat()), Err(FrameError::Shape(_))));
        assert!(matches!(check(&[&[0xbb][..], &max].concat()), Err(FrameError::Shape(_))));
    }

    /// CBOR of any shape, mostly well formed.
    fn any_item() -> impl Strategy<Value = Vec<u8>> {
        let leaf = prop_oneof![
            any::<u64>().prop_map(|number| [&[0x1b][..], &number.to_be_bytes()].concat()),
            prop::collection::vec(any::<u8>(), 0..20).prop_map(|bytes| [
                &[0x40 + bytes.len() as u8][..],
                &bytes
            ]
            .concat()),
            "[a-z]{0,10}".prop_map(|text| [&[0x60 + text.len() as u8][..], text.as_bytes()].concat()),
            Just(vec![0xf6]),
            Just(vec![0xf9, 0x3c, 0x00]),
            Just(vec![0xf8, 0xff]),
        ];
        leaf.prop_recursive(20, 200, 8, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..8).prop_map(|items| [
                    vec![0x80 + items.len() as u8],
                    items.concat()
                ]
                .concat()),
                prop::collection::vec((inner.clone(), inner.clone()), 0..8).prop_map(|pairs| {
                    let items = pairs.iter().flat_map(|(key, value)| [key.clone(), value.clone()].concat());
                    [0xa0 + pairs.len() as u8].into_iter().chain(items).collect()
                }),
                inner.clone().prop_map(|item| [vec![0xc1], item].concat()),
                (inner.clone(), inner).prop_map(|(key, value)| [vec![0xa1], key, value].concat()),
            ]
        })
    }

    proptest! {
        /// What passes is one whole item by minicbor's reckoning too, within
        /// the limits; what is cut is noticed.
        #[test]
        fn what_passes_is_within_the_limits(item in any_item(), cut in any::<prop::sample::Index>(), more in 0usize..4) {
            let long = [item.clone(), vec![0; more]].concat();
            match check(&long) {
                Ok(length) => {
                    prop_assert_eq!(length, item.len());
                    let (items, depth) = counted(&item).unwrap();
                    prop_assert!(items <= MAX_ITEMS && depth <= MAX_DEPTH);
                    let part = &item[..cut.index(item.len())];
                    prop_assert!(matches!(check(part), Err(FrameError::Malformed(_))));
                }
                Err(error) => prop_assert!(matches!(error, FrameError::Shape(_)) && counted(&item).unwrap().1 > MAX_DEPTH),
            }
        }

        #[test]
        fn garbage_is_within_the_limits_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            if let Ok(length) = check(&bytes) {
                prop_assert!(length <= bytes.len());
                if let Ok((items, depth)) = counted(&bytes[..length]) {
                    prop_assert!(items <= MAX_ITEMS && depth <= MAX_DEPTH);
                }
            }
        }

        /// An unknown field of any shape within the limits changes nothing.
        #[test]
        fn what_is_unknown_is_skipped(item in any_item(), key in 4u64..1000) {
            let mut bytes = vec![0xa2, 0x00, 0x07];
            let mut encoder = Encoder::new(&mut bytes);
            encoder.u64(key).unwrap();
            bytes.extend(&item);
            match Frame::decode(&bytes) {
                Ok(frame) => prop_assert_eq!(frame, Frame { seq: 7, ..Frame::default() }),
                Err(error) => prop_assert!(matches!(error, FrameError::Shape(_)), "{:?} {:?}", error, bytes),
            }
        }

        #[test]
        fn a_cut_frame_is_refused(which in any::<prop::sample::Index>(), at in any::<prop::sample::Index>()) {
            let samples = samples();
            let bytes = which.get(&samples).1.encode();
            let cut = at.index(bytes.len());
            prop_assert!(matches!(Frame::decode(&bytes[..cut]), Err(FrameError::Malformed(_))));
        }
    }
}
