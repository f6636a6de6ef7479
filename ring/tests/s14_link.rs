//! SPEC 14: what the bridges of two hosts say to each other.
#![cfg(not(loom))]

use proptest::prelude::*;
use ring::hosts::Path;
use ring::link::{Body, Builder, Contact, HEAD_BYTES, ITEM_MAX, Item, Knock, Token, Welcome, parse, seal};

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

#[test]
fn s14_6_a_contact_comes_as_it_went() {
    let rings = (u64::MAX - 1, 0x1234_5678_9abc_def0);
    let contact = Contact {
        token: Token([7; 16]),
        ip: [3; 16],
        port: 4711,
        card: [10, 0, 0, 1],
        connection: 99,
        rings,
    };
    assert_eq!(Contact::from_path(&contact.to_path()), Ok(contact));
    assert!(Contact::from_path(&Path::default()).is_err());
    for at in [0, 3, 38, 39] {
        let mut path = contact.to_path();
        path.0[at] ^= 1;
        assert!(Contact::from_path(&path).is_err(), "byte {at}");
    }
    assert!(Contact::from_path(&Contact { port: 0, ..contact }.to_path()).is_err());
}

#[test]
fn s14_6_private_data_may_be_padded() {
    let knock = Knock { to: Token([1; 16]), from: Token([2; 16]), card: [10, 0, 0, 2], receives: 64 };
    let padded = [knock.to_bytes().as_slice(), &[0; 12]].concat();
    assert_eq!(Knock::from_bytes(&padded), Ok(knock));
    assert!(Knock::from_bytes(&padded[..40]).is_err());
    let welcome = Welcome { receives: 32 };
    let padded = [welcome.to_bytes().as_slice(), &[0; 40]].concat();
    assert_eq!(Welcome::from_bytes(&padded), Ok(welcome));
    assert!(Welcome::from_bytes(&[0; 56]).is_err());
}
