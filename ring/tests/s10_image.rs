//! SPEC 10: images survive the way into words and back, and foreign words never panic.

use proptest::prelude::*;
use ring::image::{ARENAS_MAX, ArenaRef, ENTRY_WORDS, Entry, EntryKind, HEAD_WORDS, Head, Watch};
use ring::msg::ConnId;

fn entry() -> impl Strategy<Value = Entry> {
    let kind = prop_oneof![Just(EntryKind::Listener), Just(EntryKind::Stream), Just(EntryKind::Overlay)];
    let arena = 0..u32::try_from(ARENAS_MAX).unwrap();
    (1..u64::MAX, any::<u64>(), kind, 0..2u32, any::<u32>(), arena, any::<u32>()).prop_map(
        |(inode, conn, kind, side, family_type, arena, sock)| Entry {
            inode,
            conn: ConnId(conn),
            kind,
            side,
            family_type,
            arena,
            sock,
        },
    )
}

proptest! {
    #[test]
    fn s10_1_entries_survive_the_way_into_words(e in entry()) {
        prop_assert_eq!(Entry::from_words(&e.to_words()), Ok(e));
    }

    #[test]
    fn s10_1_heads_survive_the_way_into_words(
        function: u32, nonce: u64, agent: u32, entries in 0..1000u32, watches in 0..1000u32, cookie: u64, mark: u32,
        arenas: [(u32, u64); ARENAS_MAX],
    ) {
        let arenas = arenas.map(|(fd, inode)| ArenaRef { fd, inode });
        let head = Head { function, nonce, agent, entries, watches, cookie, mark, arenas };
        prop_assert_eq!(Head::from_words(&head.to_words()), Ok(head));
    }

    #[test]
    fn s10_5_watches_survive_the_way_into_words(
        set: u32, member: u64, fd: u32, events: u32, data: u64, state in 0..8u32,
    ) {
        let watch = Watch { set, member, fd, events, data, state };
        prop_assert_eq!(Watch::from_words(&watch.to_words()), Ok(watch));
    }

    #[test]
    fn s10_5_foreign_watches_never_panic(words: [u64; ENTRY_WORDS]) {
        if let Ok(watch) = Watch::from_words(&words) {
            prop_assert!(watch.state < 8);
        }
    }

    #[test]
    fn s10_2_what_is_no_image_is_refused(head: [u64; HEAD_WORDS], words: [u64; ENTRY_WORDS]) {
        prop_assert!(Head::from_words(&head).is_err(), "the magic does not come by chance");
        if let Ok(e) = Entry::from_words(&words) {
            prop_assert!(e.side < 2 && e.inode != 0 && (e.arena as usize) < ARENAS_MAX);
        }
    }
}
