//! SPEC 13: datagrams between coordinators.
#![cfg(not(loom))]

use proptest::prelude::*;
use ring::hosts::*;
use ring::msg::{Addr, Status};

fn addresses() -> impl Strategy<Value = Addresses> {
    prop::collection::vec(any::<[u8; 16]>(), 0..=ADDRESSES_MAX).prop_map(|list| {
        let mut addresses = Addresses::NONE;
        assert!(list.iter().all(|a| addresses.push(*a)));
        assert_eq!(addresses.as_slice(), list);
        addresses
    })
}

fn calls() -> impl Strategy<Value = CallMsg> {
    let addr = || any::<([u8; 16], u16)>().prop_map(|(ip, port)| Addr { ip, port });
    let path = || prop::collection::vec(any::<u8>(), PATH_BYTES).prop_map(|v| Path(v.try_into().unwrap()));
    let role = || prop_oneof![Just(Role::Caller), Just(Role::Callee)];
    let ending = prop_oneof![Just(Ending::Marked), Just(Ending::Unmarked), Just(Ending::Refused)];
    let status = (1u16..8).prop_map(|status| Status::from_wire(status).unwrap());
    let kind = prop_oneof![
        (addr(), addr(), path()).prop_map(|(dst, src, path)| CallKind::Connect { dst, src, path }),
        path().prop_map(|path| CallKind::Accepted { path }),
        status.prop_map(|status| CallKind::Refused { status }),
        (role(), ending).prop_map(|(role, ending)| CallKind::Close { role, ending }),
        (role(), any::<bool>()).prop_map(|(role, over)| CallKind::Closed { role, over }),
    ];
    (1u64.., any::<u64>(), kind).prop_map(|(number, settled, kind)| CallMsg { number, settled, kind })
}

fn messages() -> impl Strategy<Value = HostMsg> {
    let label = any::<([u8; 16], u64, u64)>().prop_map(|(to, quote, ticket)| Label {
        to: Incarnation(to),
        quote,
        ticket,
    });
    prop_oneof![
        (label.clone(), any::<u32>(), addresses()).prop_map(|(label, epoch, addresses)| HostMsg::Hello {
            label,
            epoch,
            addresses
        }),
        (label.clone(), any::<u32>()).prop_map(|(label, epoch)| HostMsg::Bye { label, epoch }),
        (label, any::<u32>(), calls()).prop_map(|(label, epoch, call)| HostMsg::Call { label, epoch, call }),
    ]
}

proptest! {
    #[test]
    fn s13_3_a_message_comes_as_it_went(message in messages()) {
        let (bytes, length) = message.to_wire();
        prop_assert!((BODY_BYTES_MIN..=BODY_BYTES_MAX).contains(&length));
        prop_assert_eq!(HostMsg::from_wire(&bytes[..length]), Ok(message));
        // No other length is that message, or any.
        for other in (0..length).chain(length + 1..=BODY_BYTES_MAX) {
            prop_assert_eq!(HostMsg::from_wire(&bytes[..other]), Err(BadDatagram));
        }
    }

    #[test]
    fn s13_3_what_is_taken_for_a_message_is_written_so(bytes in prop::collection::vec(any::<u8>(), 0..BODY_BYTES_MAX + 20)) {
        if let Ok(message) = HostMsg::from_wire(&bytes) {
            let (again, length) = message.to_wire();
            prop_assert_eq!(&again[..length], &bytes[..]);
        }
    }

    #[test]
    fn s13_2_an_envelope_comes_as_it_went(
        sender in any::<[u8; 16]>(),
        counter in any::<u64>(),
        sealed in prop::collection::vec(any::<u8>(), 0..DATAGRAM_BYTES_MAX),
    ) {
        let mut bytes = Envelope::head(Incarnation(sender), counter).to_vec();
        bytes.extend(&sealed);
        let fits = (BODY_BYTES_MIN + TAG_BYTES..=BODY_BYTES_MAX + TAG_BYTES).contains(&sealed.len());
        let good = fits && counter != 0 && sender != [0; 16];
        let expected = Envelope { sender: Incarnation(sender), counter, sealed: &sealed };
        prop_assert_eq!(Envelope::from_wire(&bytes), if good { Ok(expected) } else { Err(BadDatagram) });
        bytes[0] ^= 1;
        prop_assert_eq!(Envelope::from_wire(&bytes), Err(BadDatagram));
    }
}

#[test]
fn s13_2_the_bytes_on_the_wire() {
    let head = Envelope::head(Incarnation(*b"0123456789abcdef"), 0x0807_0605_0403_0201);
    assert_eq!(head[..8], [&b"IPDH"[..], &ring::VERSION.to_le_bytes()].concat());
    assert_eq!(&head[8..], b"0123456789abcdef\x01\x02\x03\x04\x05\x06\x07\x08");
    assert_eq!(Envelope::nonce(&head), head[8..]);
    assert_eq!(associated_data(&head, [10, 0, 0, 1]), [&head[..], &[10, 0, 0, 1]].concat()[..]);
}

#[test]
fn s13_3_more_addresses_than_fit_are_refused() {
    let mut addresses = Addresses::NONE;
    for n in 0..ADDRESSES_MAX {
        assert!(addresses.push([u8::try_from(n).unwrap(); 16]));
    }
    assert!(!addresses.push([99; 16]));
    let label = Label { to: Incarnation::NOBODY, quote: 0, ticket: 1 };
    let (mut bytes, length) = HostMsg::Hello { label, epoch: 1, addresses }.to_wire();
    bytes[2..4].copy_from_slice(&u16::MAX.to_le_bytes());
    assert_eq!(HostMsg::from_wire(&bytes[..length]), Err(BadDatagram));
}
