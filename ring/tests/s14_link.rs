//! SPEC 14: what the bridges of two hosts say to each other.
#![cfg(not(loom))]

use proptest::prelude::*;
use ring::link::{Body, Builder, HEAD_BYTES, ITEM_MAX, Item, parse, seal};

fn bodies() -> impl Strategy<Value = (u32, u8, u64, u64, bool, Vec<u64>)> {
    (
        any::<u32>(),
        0..8_u8,
        any::<u64>(),
        any::<u64>(),
        any::<bool>(),
        prop::collection::vec(any::<u64>(), 0..9),
    )
}

proptest! {
    #[test]
    fn s14_2_what_is_built_is_parsed(items in prop::collection::vec(bodies(), 0..20), taken: u32) {
        let rests: Vec<Vec<u8>> = items.iter().map(|i| i.5.iter().flat_map(|w| w.to_le_bytes()).collect()).collect();
        let items: Vec<Item<'_>> = items.iter().zip(&rests).map(|((connection, kind, a, b, flag, _), rest)| {
            let (start, first, urgent) = (*a, *b, *flag);
            let body = match kind {
                0 => Body::Run { start, first, len: (a % 32_768 + 1) * 8, urgent },
                1 => Body::Inline { start, first, urgent, rest },
                2 => Body::Consumed(*a),
                3 => Body::State(u32::try_from(a % 3 + 1).unwrap()),
                4 => Body::Urgent(*a),
                5 => Body::ReaderClosed { shut: *flag },
                6 => Body::Reset,
                _ => Body::Done,
            };
            Item { connection: *connection, body }
        }).collect();
        let mut room = vec![0; 8192];
        let mut builder = Builder::new(&mut room, 0);
        for item in &items {
            prop_assert!(builder.add(item.connection, &item.body));
        }
        let len = builder.len();
        seal(&mut room[..len], taken);
        let (told, parsed) = parse(&room[..len]).unwrap();
        prop_assert_eq!(told, taken);
        prop_assert_eq!(parsed.collect::<Result<Vec<_>, _>>().unwrap(), items);
    }
}

#[test]
fn s14_2_a_full_message_takes_no_more() {
    let mut room = [0; HEAD_BYTES + ITEM_MAX + 8];
    let mut builder = Builder::new(&mut room, 0);
    assert!(builder.is_empty());
    assert!(builder.add(1, &Body::Inline { start: 0, first: 1, urgent: false, rest: &[0; 8] }));
    assert!(!builder.add(2, &Body::Done));
    assert_eq!((builder.left(), builder.len()), (0, HEAD_BYTES + ITEM_MAX + 8));
}
