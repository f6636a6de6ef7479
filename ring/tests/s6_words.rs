//! SPEC 6.3, 6.7, 6.8: what a sleep word says after each step.
#![cfg(not(loom))]

use ring::wake::{Claimed, EVERYBODY, FUTEX, SleepWord, WIRE};

#[test]
fn s6_7_a_word_stays_settled_until_it_is_relaxed() {
    let word = SleepWord::new();
    assert!(!word.is_announced() && word.sleepers() == Claimed::NONE);
    let first = word.announce(WIRE, 5);
    assert!(!first.is_settled());
    word.settle(first);
    for _ in 0..3 {
        assert_eq!(word.sleepers().bell(), Some(5));
        assert_eq!(word.sleepers().bell(), None, "claimed once");
        assert!(word.is_fenced() && word.announce(WIRE, 5).is_settled());
    }
    word.relax();
    assert!(word.is_fenced(), "somebody sleeps");
    let _ = word.sleepers();
    word.relax();
    assert!(!word.is_announced() && !word.announce(FUTEX, EVERYBODY).is_settled());
}

#[test]
fn s6_7_who_was_claimed_meanwhile_settles_the_word_and_does_not_sleep() {
    let word = SleepWord::new();
    let announced = word.announce(FUTEX, EVERYBODY);
    assert_eq!(word.sleepers().how(), FUTEX);
    assert_ne!(word.settle(announced).futex_value(), word.bits());
    assert!(word.announce(FUTEX, EVERYBODY).is_settled());
}

#[test]
fn s6_7_who_was_relaxed_meanwhile_settles_nothing() {
    let word = SleepWord::new();
    let announced = word.announce(FUTEX, EVERYBODY);
    let _ = word.sleepers();
    word.relax();
    let later = word.announce(FUTEX, EVERYBODY);
    assert_eq!(word.settle(announced), announced);
    assert!(!word.announce(FUTEX, EVERYBODY).is_settled());
    assert!(word.settle(later).is_settled());
}

#[test]
fn s6_7_the_next_connection_keeps_the_request_and_nothing_else() {
    let word = SleepWord::new();
    word.reset();
    assert!(!word.announce(FUTEX, EVERYBODY).is_settled(), "nobody left anything");
    word.reset();
    assert!(!word.is_announced(), "asked for, and not settled");
    word.announce(WIRE, 5);
    word.retire();
    assert!(word.is_fenced() && !word.is_sleeping());
    word.announce(WIRE, 5);
    word.reset();
    assert!(!word.is_sleeping() && word.announce(WIRE, 7).is_settled());
    assert_eq!(word.sleepers().bell(), Some(7));
}

#[test]
fn s6_8_one_sleepers_bell_is_rung_and_several_hear_the_wire() {
    let word = SleepWord::new();
    for (bells, rung) in [(&[7, 7][..], 7), (&[7, 8], EVERYBODY), (&[EVERYBODY, 7], EVERYBODY), (&[9], 9)] {
        for bell in bells {
            word.announce(WIRE, *bell);
            word.announce(FUTEX, 3);
        }
        let claimed = word.sleepers();
        assert_eq!((claimed.bell(), claimed.how()), (Some(rung), FUTEX | WIRE));
    }
}
