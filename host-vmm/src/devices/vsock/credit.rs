//! How much either side may send (virtio 1.2 §5.10.6.3).

use std::num::Wrapping;

/// Bytes that a receiver has room for who can hold `buf_alloc` and has passed on `fwd_cnt`, if it was sent `sent` in all. The
/// counts begin again after 2³² bytes. Nonsense, such as more passed on than was sent, means none.
pub fn room(buf_alloc: u32, sent: Wrapping<u32>, fwd_cnt: Wrapping<u32>) -> u32 {
    let held = (sent - fwd_cnt).0;
    buf_alloc.saturating_sub(held)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Where counts are that are about to begin again, and others.
    const STARTS: [u32; 6] = [0, 1, 255, 0x7fff_ff80, 0xffff_ff80, u32::MAX];

    #[test]
    fn room_is_what_is_left_wherever_the_counts_are() {
        for start in STARTS {
            for alloc in 0..=256_u32 {
                for held in 0..=512_u32 {
                    let fwd_cnt = Wrapping(start);
                    let sent = fwd_cnt + Wrapping(held);
                    let expected = i64::from(alloc) - i64::from(held);
                    let found = room(alloc, sent, fwd_cnt);
                    assert_eq!(i64::from(found), expected.max(0), "{start} {alloc} {held}");
                }
            }
            // More was passed on than was sent: that is nearly 2³² bytes held.
            for nonsense in 1..=512_u32 {
                let fwd_cnt = Wrapping(start) + Wrapping(nonsense);
                assert_eq!(room(u32::MAX - 512, Wrapping(start), fwd_cnt), 0);
            }
        }
    }

    /// What is between two sides: bytes sent, passed on, and what of that the sender has been told.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
    struct State {
        sent: u32,
        passed: u32,
        told: u32,
    }

    /// Every order in which bytes are sent, passed on and told of. A receiver never holds more than it can, whoever keeps to
    /// [`room`] is never refused by it, and when all is passed on and told there is room for all again.
    #[test]
    fn a_receiver_holds_no_more_than_it_can_in_any_order_of_events() {
        const ALLOC: u32 = 5;
        const TOTAL: u32 = 16;
        for start in STARTS {
            let at = |count| Wrapping(start) + Wrapping(count);
            let mut seen = BTreeSet::new();
            let mut next = vec![State {
                sent: 0,
                passed: 0,
                told: 0,
            }];
            while let Some(state) = next.pop() {
                if !seen.insert(state) {
                    continue;
                }
                let State { sent, passed, told } = state;
                assert!(sent - passed <= ALLOC, "{state:?}");
                let of_sender = room(ALLOC, at(sent), at(told));
                let of_receiver = room(ALLOC, at(sent), at(passed));
                assert!(of_sender <= of_receiver, "{state:?}");
                assert!(told < sent || of_sender == ALLOC, "{state:?}");
                for count in 1..=of_sender.min(TOTAL - sent) {
                    next.push(State {
                        sent: sent + count,
                        ..state
                    });
                }
                if passed < sent {
                    next.push(State {
                        passed: passed + 1,
                        ..state
                    });
                }
                for told in told + 1..=passed {
                    next.push(State { told, ..state });
                }
            }
            // It came to the end.
            assert!(seen.contains(&State {
                sent: TOTAL,
                passed: TOTAL,
                told: TOTAL
            }));
        }
    }
}
