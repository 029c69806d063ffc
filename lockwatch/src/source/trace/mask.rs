//! Kernel pointers in a trace: replaced one for one, by a secret that ends with the recording.
//!
//! Refuses to overlook one: every part of a reading is named, so that a new part does not compile
//! before somebody has thought of it.

use std::hash::Hasher as _;

use siphasher::sip::SipHasher24;

use crate::engine::identity::Owner;
use crate::engine::input::{Input, Reading};
use crate::engine::snapshot::{Lock, Place, Reference, Snapshot, Waiter};

/// A permutation of 64-bit numbers: different tokens stay different, equal ones equal.
pub(super) struct Mask {
    rounds: [SipHasher24; ROUNDS],
}

/// Four rounds of a Feistel network with a keyed hash make a permutation that looks like chance.
const ROUNDS: usize = 4;

impl Mask {
    pub(super) fn new(secret: &[u8; 16]) -> Self {
        let round = |number: usize| {
            let mut hash = SipHasher24::new_with_key(secret);
            hash.write_usize(number);
            hash
        };
        Self { rounds: std::array::from_fn(round) }
    }

    fn token(&self, token: u64) -> u64 {
        let (mut left, mut right) = ((token >> 32) as u32, token as u32);
        for round in &self.rounds {
            let mut hash = *round;
            hash.write_u32(right);
            (left, right) = (right, left ^ hash.finish() as u32);
        }
        u64::from(left) << 32 | u64::from(right)
    }

    fn owner(&self, owner: Owner) -> Owner {
        Owner::new(self.token(owner.token()))
    }

    /// The input as it may be written down; `None` where it has no pointer.
    pub(super) fn masked(&self, input: &Input) -> Option<Input> {
        let Input::Reading(reading) = input else { return None };
        let Reading { begun, snapshot, ids } = &**reading;
        let snapshot = self.snapshot(snapshot.clone());
        Some(Input::Reading(Box::new(Reading { begun: *begun, snapshot, ids: ids.clone() })))
    }

    fn snapshot(&self, snapshot: Snapshot) -> Snapshot {
        let Snapshot {
            files,
            locks,
            waiters,
            references,
            places,
            search,
            processes,
            deaths,
            history,
            births,
            limits,
            stable_owners,
            nested,
            stuck,
        } = snapshot;
        Snapshot {
            files,
            locks: locks.into_iter().map(|lock| self.lock(lock)).collect(),
            waiters: waiters.into_iter().map(|waiter| self.waiter(waiter)).collect(),
            references: references.into_iter().map(|of| self.reference(of)).collect(),
            places: places.into_iter().map(|place| self.place(place)).collect(),
            search,
            processes,
            deaths,
            history,
            births,
            limits,
            stable_owners,
            nested,
            stuck,
        }
    }

    fn lock(&self, lock: Lock) -> Lock {
        let Lock { entry, file, kind, access, range, owner, acquirer, breaking_to, taken } = lock;
        Lock {
            entry: self.token(entry),
            file,
            kind,
            access,
            range,
            owner: owner.map(|owner| self.owner(owner)),
            acquirer,
            breaking_to,
            taken,
        }
    }

    fn waiter(&self, waiter: Waiter) -> Waiter {
        let Waiter { behind, file, kind, access, range, owner, requester, since } = waiter;
        Waiter {
            behind: behind.map(|entry| self.token(entry)),
            file,
            kind,
            access,
            range,
            owner: owner.map(|owner| self.owner(owner)),
            requester,
            since,
        }
    }

    fn place(&self, place: Place) -> Place {
        let Place { description, kind, owners } = place;
        Place { description: self.owner(description), kind, owners }
    }

    fn reference(&self, reference: Reference) -> Reference {
        let Reference { pid, tid, via, fd, file, description, table, opener, writes } = reference;
        Reference {
            pid,
            tid,
            via,
            fd,
            file,
            description: description.map(|owner| self.owner(owner)),
            table: table.map(|owner| self.owner(owner)),
            opener,
            writes,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn different_pointers_stay_different(
            secret in any::<[u8; 16]>(),
            base in any::<u64>(),
            steps in proptest::collection::btree_set(0u64..100_000, 2..100),
        ) {
            let mask = Mask::new(&secret);
            let masked: BTreeSet<u64> =
                steps.iter().map(|step| mask.token(base.wrapping_add(step * 64))).collect();
            prop_assert_eq!(masked.len(), steps.len());
        }

        #[test]
        fn without_the_secret_a_pointer_cannot_be_told(
            one in any::<[u8; 16]>(),
            other in any::<[u8; 16]>(),
            pointer in 0xffff_8880_0000_0000u64..,
        ) {
            prop_assume!(one != other);
            let [one, other] = [one, other].map(|secret| Mask::new(&secret).token(pointer));
            prop_assert_ne!(one, other);
            prop_assert_ne!(one, pointer);
        }
    }
}
