//! The difference between what an edge holds and what it should.

use std::collections::BTreeMap;

use super::frame::{Gone, Holding, WireKey};
use crate::object::{Key, Uid, digest};

/// What identifies one object's content: its uid and content hash.
pub type Version = (Uid, [u8; 32]);

/// A set of objects by what identifies their content.
pub type Set = BTreeMap<Key, Version>;

/// The digest of a set ([`crate::object::digest`]).
pub fn set_digest(set: &Set) -> [u8; 32] {
    digest(set.iter().map(|(key, (uid, hash))| (key, uid, hash)))
}

/// A set as an inventory names it.
pub fn holdings(set: &Set) -> Vec<Holding> {
    set.iter()
        .map(|(key, (uid, hash))| Holding { key: key.into(), uid: uid.0.clone(), hash: *hash })
        .collect()
}

/// What the cloud has to send.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Difference {
    /// Objects the edge lacks, or has another content of, and the uid of what
    /// it has in their place.
    pub puts: Vec<(Key, Option<Uid>)>,
    /// Objects the edge is to hold no longer.
    pub drops: Vec<Gone>,
}

/// Compares the edge's inventory with the set it should hold. Absence is not
/// an order: unless `complete` says that every list behind `wanted` was read
/// whole, nothing is dropped.
pub fn difference(held: &[Holding], wanted: &Set, complete: bool) -> Difference {
    let mut missing: BTreeMap<WireOrd<'_>, &Key> = wanted
        .keys()
        .map(|key| (WireOrd(&key.group, &key.resource, &key.namespace, &key.name), key))
        .collect();
    let mut difference = Difference::default();
    let mut instead = BTreeMap::new();
    for holding in held {
        let WireKey { group, resource, namespace, name } = &holding.key;
        let place = WireOrd(group, resource, namespace, name);
        let wanted_version = missing.get(&place).and_then(|key| wanted.get(*key));
        match wanted_version {
            Some((uid, hash)) if uid.0 == holding.uid && *hash == holding.hash => {
                missing.remove(&place);
            }
            // Replaced by the put that follows.
            Some(_) => {
                instead.insert(place, Uid(holding.uid.clone()));
            }
            None if complete => {
                difference.drops.push(Gone { key: holding.key.clone(), uid: holding.uid.clone() });
            }
            None => {}
        }
    }
    difference.puts = missing.into_iter().map(|(place, key)| (key.clone(), instead.remove(&place))).collect();
    difference
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct WireOrd<'a>(&'a str, &'a str, &'a str, &'a str);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_set() -> impl Strategy<Value = Set> {
        prop::collection::btree_map(
            (0u8..3, 0u8..6).prop_map(|(kind, name)| {
                Key::core(["pods", "secrets", "configmaps"][kind as usize], "default", &name.to_string())
                    .unwrap()
            }),
            (0u8..3, 0u8..3).prop_map(|(uid, hash)| (Uid(uid.to_string()), [hash; 32])),
            0..12,
        )
    }

    fn apply(mut held: Set, difference: &Difference, wanted: &Set) -> Set {
        for drop in &difference.drops {
            held.remove(&Key::try_from(&drop.key).unwrap());
        }
        for (key, instead) in &difference.puts {
            assert_eq!(held.get(key).map(|(uid, _)| uid), instead.as_ref());
            held.insert(key.clone(), wanted[key].clone());
        }
        held
    }

    proptest! {
        #[test]
        fn the_difference_makes_the_edge_equal_and_no_more(held in any_set(), wanted in any_set()) {
            let difference = difference(&holdings(&held), &wanted, true);
            prop_assert!(difference.puts.iter().all(|(key, _)| held.get(key) != wanted.get(key)));
            prop_assert!(difference.drops.iter().all(|drop| !wanted.contains_key(&Key::try_from(&drop.key).unwrap())));
            let after = apply(held, &difference, &wanted);
            prop_assert_eq!(set_digest(&after), set_digest(&wanted));
            prop_assert_eq!(after, wanted);
        }

        #[test]
        fn an_incomplete_cloud_takes_nothing_away(held in any_set(), wanted in any_set()) {
            let difference = difference(&holdings(&held), &wanted, false);
            prop_assert!(difference.drops.is_empty());
        }

        #[test]
        fn different_sets_have_different_digests(one in any_set(), other in any_set()) {
            prop_assert_eq!(one == other, set_digest(&one) == set_digest(&other));
        }
    }
}
