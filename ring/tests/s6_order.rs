//! SPEC 6.4.11: stamps put the news of one scan into the order of their arrival.
#![cfg(not(loom))]

use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use ring::wake::{Claimed, SleepWord, age, collect, post, stamp};

#[test]
fn s6_4_11_older_news_have_a_higher_age_from_any_start() {
    for start in 0..=u32::from(u8::MAX) {
        let (order, sleeping) = (AtomicU32::new(start), SleepWord::new());
        let news: Vec<_> = (0..254).map(|_| AtomicU8::new(0)).collect();
        for byte in &news {
            assert_eq!(post(byte, stamp(&order), &sleeping), Claimed::NONE, "nobody sleeps");
        }
        let stamps: Vec<_> = news.iter().map(collect).collect();
        assert!(stamps.iter().all(|stamp| *stamp != 0), "news without a stamp");
        assert!(news.iter().all(|byte| collect(byte) == 0), "news that were taken are there again");
        let ages: Vec<_> = stamps.iter().map(|stamp| age(order.load(Ordering::Relaxed), *stamp)).collect();
        assert!(ages.is_sorted_by(|older, newer| older > newer), "from {start}: {ages:?}");
    }
}
