//! SPEC 3, 7, 8: messages survive the way there and back, and any bytes at all are refused or make sense.
#![cfg(not(loom))]

use proptest::prelude::*;
use ring::attach::{self, BadMessage, Call, Reply, TEXT_BYTES, Text};
use ring::bus::{self, BusMsg, FUNCTIONS_MAX};
use ring::msg::{Addr, Completion, ConnId, Malformed, Request, Status};
use ring::window::Raw;

fn addr() -> impl Strategy<Value = Addr> {
    prop_oneof![
        (any::<[u8; 16]>(), any::<u16>()).prop_map(|(ip, port)| Addr { ip, port }),
        (any::<[u8; 4]>(), any::<u16>()).prop_map(|(ip, port)| Addr::v4(ip, port)),
    ]
}

fn conn() -> impl Strategy<Value = ConnId> {
    any::<u64>().prop_map(ConnId)
}

fn status() -> impl Strategy<Value = Status> {
    (0..8u16).prop_map(|v| Status::from_wire(v).expect("0 to 7 are statuses"))
}

fn request() -> impl Strategy<Value = Request> {
    let three = || (any::<u32>(), any::<u32>(), any::<u32>());
    prop_oneof![
        (addr(), any::<u32>(), any::<u32>()).prop_map(|(addr, backlog, flags)| Request::Listen {
            addr,
            backlog,
            flags
        }),
        any::<u32>().prop_map(|listener| Request::Unlisten { listener }),
        (addr(), addr()).prop_map(|(dst, src)| Request::Connect { dst, src }),
        any::<[u32; 2]>().prop_map(|[listener, flags]| Request::Accept { listener, flags }),
        any::<[u32; 2]>().prop_map(|[listener, token]| Request::CancelAccept { listener, token }),
        (conn(), 0..2u32, any::<bool>()).prop_map(|(conn, side, finished)| Request::Close {
            conn,
            side,
            finished
        }),
        conn().prop_map(|conn| Request::Requeue { conn }),
        (addr(), any::<u32>()).prop_map(|(dst, count)| Request::Ahead { dst, count }),
        (conn(), addr()).prop_map(|(conn, src)| Request::Open { conn, src }),
        (conn(), 0..2u32).prop_map(|(conn, side)| Request::Shut { conn, side }),
        any::<u64>().prop_map(|nonce| Request::Fork { nonce }),
        any::<u64>().prop_map(|nonce| Request::ForkFailed { nonce }),
        (any::<u64>(), conn(), 0..2u32).prop_map(|(nonce, conn, side)| Request::Lend { nonce, conn, side }),
        any::<u32>().prop_map(|listener| Request::Withdraw { listener }),
        (three(), any::<u64>()).prop_map(|((serial, pid, uid), name)| Request::Offer {
            serial,
            pid,
            uid,
            name
        }),
        any::<u32>().prop_map(|serial| Request::Retract { serial }),
        any::<[u32; 4]>().prop_map(|[function, serial, pid, uid]| Request::Claim {
            function,
            serial,
            pid,
            uid
        }),
        (three(), any::<u64>(), any::<[u32; 2]>(), any::<u64>()).prop_map(
            |((function, group, parent), nonce, [uid, pid], netns)| Request::Attach {
                function,
                group,
                parent,
                nonce,
                uid,
                pid,
                netns
            }
        ),
        any::<u32>().prop_map(|function| Request::Detach { function }),
        (three(), any::<u64>()).prop_map(|((function, pid, uid), name)| Request::StandsFor {
            function,
            pid,
            uid,
            name
        }),
        (any::<u32>(), any::<bool>()).prop_map(|(segment, ok)| Request::SegmentMade { segment, ok }),
        (any::<u32>(), any::<u64>(), any::<bool>()).prop_map(|(parent, nonce, lives)| Request::Child {
            parent,
            nonce,
            lives
        }),
    ]
}

fn completion() -> impl Strategy<Value = Completion> {
    prop_oneof![
        Just(Completion::Credit),
        (status(), any::<u32>()).prop_map(|(status, value)| Completion::Done { status, value }),
        (status(), conn()).prop_map(|(status, conn)| Completion::Connected { status, conn }),
        (status(), conn(), addr(), addr(), any::<bool>()).prop_map(|(status, conn, peer, local, more)| {
            Completion::Accepted { status, conn, peer, local, more }
        }),
        (any::<u32>(), any::<bool>()).prop_map(|(listener, waiting)| Completion::Ready { listener, waiting }),
        (conn(), any::<bool>()).prop_map(|(conn, reset)| Completion::PeerGone { conn, reset }),
        (conn(), 0..2u32).prop_map(|(conn, side)| Completion::Shut { conn, side }),
        (conn(), addr()).prop_map(|(conn, dst)| Completion::Granted { conn, dst }),
        (status(), conn()).prop_map(|(status, conn)| Completion::Claimed { status, conn }),
        (any::<u32>(), conn()).prop_map(|(serial, conn)| Completion::Paired { serial, conn }),
        any::<[u32; 3]>().prop_map(|[segment, client_group, server_group]| Completion::MakeSegment {
            segment,
            client_group,
            server_group
        }),
        any::<u32>().prop_map(|segment| Completion::DropSegment { segment }),
    ]
}

fn call() -> impl Strategy<Value = Call> {
    prop_oneof![
        (any::<u32>(), any::<u64>()).prop_map(|(parent, nonce)| Call::Hello { parent, nonce }),
        (any::<u32>(), 0..2u32).prop_map(|(segment, side)| Call::Segment { segment, side }),
        any::<bool>().prop_map(|verbose| Call::Report { verbose }),
        Just(Call::Lease),
        Just(Call::Vouch),
        (any::<u32>(), any::<u64>()).prop_map(|(parent, nonce)| Call::Born { parent, nonce }),
        Just(Call::Admit),
    ]
}

fn reply() -> impl Strategy<Value = Reply> {
    prop_oneof![
        (1..u32::MAX, any::<u32>(), any::<u32>(), any::<u32>(), any::<bool>()).prop_map(
            |(function, group, epoch, pid, hosts)| { Reply::Welcome { function, group, epoch, pid, hosts } }
        ),
        (0..2u32).prop_map(|side| Reply::Segment { side }),
        Just(Reply::Report),
        Just(Reply::Vouched),
        Just(Reply::Leased),
        // A zero byte ends a text on the wire.
        "[^\\x00]*".prop_map(|s| Reply::Refused(Text::new(&s))),
    ]
}

fn bus_msg() -> impl Strategy<Value = BusMsg> {
    prop_oneof![
        Just(BusMsg::Hello),
        any::<u32>().prop_map(|epoch| BusMsg::Up { epoch }),
        (0..FUNCTIONS_MAX).prop_map(|function| BusMsg::Map { function }),
        (0..FUNCTIONS_MAX).prop_map(|function| BusMsg::Mapped { function }),
        (0..FUNCTIONS_MAX).prop_map(|function| BusMsg::MapFailed { function }),
        (0..FUNCTIONS_MAX).prop_map(|function| BusMsg::Unmap { function }),
        (0..FUNCTIONS_MAX).prop_map(|function| BusMsg::Unmapped { function }),
        any::<u32>().prop_map(|segment| BusMsg::Segment { segment }),
        any::<u32>().prop_map(|segment| BusMsg::SegmentMapped { segment }),
        any::<u32>().prop_map(|segment| BusMsg::SegmentFailed { segment }),
    ]
}

/// Entries with a known kind more often than not.
fn raw() -> impl Strategy<Value = Raw> {
    let kind = prop_oneof![1..15u8, 32..35u8, 64..72u8, 96..98u8, any::<u8>()];
    let word = || prop_oneof![0..4u64, 0..1u64 << 33, any::<u64>()];
    let body = [word(), word(), word(), word(), word(), word()];
    (kind, prop_oneof![0..9u16, any::<u16>()], any::<u32>(), body)
        .prop_map(|(kind, status, token, body)| Raw { kind, status, token, body })
}

/// Datagrams of `bytes` length with an honest head more often than not.
fn datagram(magic: [u8; 4], bytes: usize) -> impl Strategy<Value = Vec<u8>> {
    let honest = (0..70u32, prop::collection::vec(any::<u8>(), bytes - 12), 0..10u32).prop_map(
        move |(kind, rest, version)| {
            let version = if version == 0 { 2u32 } else { 1 };
            [&magic[..], &version.to_le_bytes(), &kind.to_le_bytes(), &rest].concat()
        },
    );
    prop_oneof![3 => honest, 1 => prop::collection::vec(any::<u8>(), 0..2 * bytes)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn s3_1_requests_come_back(request in request(), token in any::<u32>()) {
        let raw = request.to_raw(token);
        prop_assert_eq!(raw.token, token);
        prop_assert_eq!(Request::from_raw(&raw), Ok(request));
    }

    #[test]
    fn s3_2_completions_come_back(completion in completion(), token in any::<u32>()) {
        let raw = completion.to_raw(token);
        prop_assert_eq!(raw.token, token);
        prop_assert_eq!(Completion::from_raw(&raw), Ok(completion));
    }

    #[test]
    fn s3_3_any_entry_is_refused_or_means_what_it_says(raw in raw()) {
        if let Ok(request) = Request::from_raw(&raw) {
            prop_assert_eq!(Request::from_raw(&request.to_raw(raw.token)), Ok(request));
            prop_assert_eq!(Completion::from_raw(&raw), Err(Malformed), "one kind, two meanings");
        }
        if let Ok(completion) = Completion::from_raw(&raw) {
            prop_assert_eq!(Completion::from_raw(&completion.to_raw(raw.token)), Ok(completion));
        }
    }

    #[test]
    fn s3_4_a_connection_is_its_three_parts(segment in 0..=ConnId::SEGMENT_MAX, slot in any::<u16>(), generation in 0..1u32 << 24) {
        let id = ConnId::new(segment, slot, generation);
        prop_assert_eq!((id.segment(), id.slot(), id.generation()), (segment, slot, generation));
    }

    #[test]
    fn s7_1_calls_and_replies_come_back(call in call(), reply in reply()) {
        prop_assert_eq!(Call::from_wire(&call.to_wire()), Ok(call));
        prop_assert_eq!(Reply::from_wire(&reply.to_wire()), Ok(reply));
    }

    #[test]
    fn s7_2_any_datagram_is_refused_or_means_what_it_says(bytes in datagram(attach::MAGIC, attach::BYTES)) {
        if let Ok(call) = Call::from_wire(&bytes) {
            prop_assert_eq!(Call::from_wire(&call.to_wire()), Ok(call));
        }
        if let Ok(reply) = Reply::from_wire(&bytes) {
            prop_assert_eq!(Reply::from_wire(&reply.to_wire()), Ok(reply));
        }
        let bad = Call::from_wire(&bytes).err();
        prop_assert_eq!(bad == Some(BadMessage::NotOurs), bytes.len() != attach::BYTES || bytes[..4] != attach::MAGIC);
    }

    #[test]
    fn s7_3_a_text_is_cut_at_a_character(s in any::<String>()) {
        let text = Text::new(&s);
        prop_assert!(s.starts_with(text.as_str()));
        prop_assert!(s.len() - text.as_str().len() < 4 || text.as_str().len() > TEXT_BYTES - 4);
    }

    #[test]
    fn s8_1_bus_messages_come_back(msg in bus_msg()) {
        prop_assert_eq!(BusMsg::from_wire(&msg.to_wire()), Ok(msg));
    }

    #[test]
    fn s8_2_any_bus_datagram_is_refused_or_means_what_it_says(bytes in datagram(*b"IPDB", bus::BYTES)) {
        if let Ok(msg) = BusMsg::from_wire(&bytes) {
            prop_assert_eq!(BusMsg::from_wire(&msg.to_wire()), Ok(msg));
        }
    }
}

#[test]
fn s3_5_addresses_know_what_they_are() {
    let loopback = Addr::v4([127, 8, 9, 10], 80);
    assert!(loopback.is_v4() && loopback.is_loopback() && !loopback.is_wildcard());
    assert_eq!(loopback.to_string(), "127.8.9.10:80");
    let six = Addr { ip: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], port: 443 };
    assert!(!six.is_v4() && six.is_loopback());
    assert_eq!(six.to_string(), "[::1]:443");
    for any in [Addr { ip: Addr::V4_ANY, port: 1 }, Addr { ip: Addr::V6_ANY, port: 1 }] {
        assert!(any.is_wildcard() && !any.is_loopback());
    }
}

#[test]
fn s7_2_another_version_is_named() {
    let mut wire = Call::Report { verbose: false }.to_wire();
    wire[4] = 9;
    assert_eq!(Call::from_wire(&wire), Err(BadMessage::Version(9)));
    assert!(BadMessage::Version(9).to_string().contains("version 9"));
}
