//! One connection of the edge after `Welcome`: what follows from what the
//! cloud says, and what to say next. No socket, no clock, no store: the hub
//! carries it out, and `sim` tries it.

use std::collections::{BTreeMap, VecDeque};

use crate::edge::meta::Order;
use crate::link::compress::{Unpack, unpack};
use crate::link::frame::{INVENTORY_PART, Inventory, NeedFull, Put, Renewed, Trust};
use crate::link::sync::{Set, holdings};
use crate::link::{Body, Heard, ItemId};
use crate::object::{Key, Uid, codec};

/// What is to be done, in this order, before anything is acknowledged.
#[derive(Debug, PartialEq)]
pub enum Deed {
    /// Make these orders durable, in one commit.
    Apply(Vec<Order>),
    /// The cloud has said that this is the whole set.
    Synced,
    /// Send this at once.
    Say(Body),
    /// The cloud has the upward items up to this one.
    Delivered(ItemId),
    /// Remember whom to trust and where to find the cloud.
    Trust(Trust),
    /// Install the next certificate.
    Renewed(Renewed),
    /// Tell a person.
    Odd(String),
}

/// What a batch of heard things comes to.
#[derive(Debug, Default, PartialEq)]
pub struct Outcome {
    /// What is to be done.
    pub deeds: Vec<Deed>,
    /// The numbers to acknowledge once it is.
    pub done: Vec<u64>,
    /// Why the connection is over, if it is.
    pub closed: Option<String>,
}

/// One connection's state.
#[derive(Debug, Default)]
pub struct Exchange {
    inventory: VecDeque<Inventory>,
    /// Items sent and not acknowledged.
    items: VecDeque<(u64, ItemId)>,
    /// The last item sent on this connection.
    last: ItemId,
}

impl Exchange {
    /// A connection whose cloud asks for an inventory of `held`, or does not.
    pub fn new(held: Option<&Set>) -> Exchange {
        let mut inventory = VecDeque::new();
        if let Some(held) = held {
            let mut rest = holdings(held);
            loop {
                let after = rest.split_off(rest.len().min(INVENTORY_PART));
                let last = after.is_empty();
                inventory.push_back(Inventory { holdings: rest, last });
                if last {
                    break;
                }
                rest = after;
            }
        }
        Exchange { inventory, ..Exchange::default() }
    }

    /// What to say before any report: the inventory, not numbered.
    pub fn inventory(&mut self) -> Option<Body> {
        self.inventory.pop_front().map(Body::Inventory)
    }

    /// Items that were not sent on this connection come after this one.
    pub fn items_after(&self) -> ItemId {
        self.last
    }

    /// An item was sent under this number.
    pub fn item_sent(&mut self, seq: u64, id: ItemId) {
        self.last = id;
        self.items.push_back((seq, id));
    }

    /// True if every item that was sent is acknowledged.
    pub fn is_idle(&self) -> bool {
        self.items.is_empty()
    }

    /// What follows from what was heard; `base` gives the uid and the content
    /// ([`codec::encode_content`]) of what the edge holds of the cloud's.
    pub fn hear(
        &mut self,
        heard: Vec<Heard>,
        mut base: impl FnMut(&Key) -> Option<(Uid, Vec<u8>)>,
    ) -> Outcome {
        let mut outcome = Outcome::default();
        let mut orders = Vec::new();
        // What the orders before will have changed once they are followed.
        let mut ahead: BTreeMap<Key, Option<(Uid, Vec<u8>)>> = BTreeMap::new();
        for heard in heard {
            match heard {
                Heard::Acked(seq) => {
                    if let Some(id) = self.acked(seq) {
                        outcome.deeds.push(Deed::Delivered(id));
                    }
                }
                Heard::Closed(reason) => {
                    outcome.closed = Some(reason);
                    break;
                }
                Heard::Body(seq, body) => {
                    let deed = match body {
                        Body::Put(put) => {
                            let held = |key: &Key| match ahead.get(key) {
                                Some(ahead) => ahead.clone(),
                                None => base(key),
                            };
                            match taken(&put, held) {
                                Taken::Order(key, uid, content, value) => {
                                    ahead.insert(key.clone(), Some((uid, content)));
                                    orders.push(Order::Put(key, value));
                                    None
                                }
                                // Said before the number is acknowledged: the
                                // cloud listens only until then.
                                Taken::NeedFull(need) => Some(Deed::Say(Body::NeedFull(need))),
                                Taken::Odd(why) => Some(Deed::Odd(why)),
                            }
                        }
                        Body::Drop(gone) => match Key::try_from(&gone.key) {
                            Ok(key) => {
                                ahead.insert(key.clone(), None);
                                orders.push(Order::Drop(key, Uid(gone.uid)));
                                None
                            }
                            Err(error) => Some(Deed::Odd(error.to_string())),
                        },
                        Body::Synced => Some(Deed::Synced),
                        Body::Trust(trust) => Some(Deed::Trust(trust)),
                        Body::Renewed(renewed) => Some(Deed::Renewed(renewed)),
                        _ => Some(Deed::Odd("something that clouds do not say".into())),
                    };
                    if let Some(deed) = deed {
                        // What came before it is done before it.
                        if !orders.is_empty() {
                            outcome.deeds.push(Deed::Apply(std::mem::take(&mut orders)));
                        }
                        outcome.deeds.push(deed);
                    }
                    outcome.done.push(seq);
                }
            }
        }
        if !orders.is_empty() {
            outcome.deeds.push(Deed::Apply(orders));
        }
        outcome
    }

    /// The last item that is acknowledged now.
    fn acked(&mut self, seq: u64) -> Option<ItemId> {
        let mut delivered = None;
        while let Some((sent, id)) = self.items.front()
            && *sent <= seq
        {
            delivered = Some(*id);
            self.items.pop_front();
        }
        delivered
    }
}

enum Taken {
    Order(Key, Uid, Vec<u8>, serde_json::Value),
    NeedFull(NeedFull),
    Odd(String),
}

/// The order in a put.
fn taken(put: &Put, held: impl FnOnce(&Key) -> Option<(Uid, Vec<u8>)>) -> Taken {
    let key = match Key::try_from(&put.key) {
        Ok(key) => key,
        Err(error) => return Taken::Odd(error.to_string()),
    };
    let mut holds = None;
    let unpacked = unpack(put, |name| {
        let (uid, content) = held(&key)?;
        holds = Some(uid);
        (crate::link::compress::name(&content) == *name).then_some(content)
    });
    let content = match unpacked {
        Ok(content) => content,
        Err(Unpack::NeedFull) => {
            let uid = holds.unwrap_or_default().0;
            return Taken::NeedFull(NeedFull { key: put.key.clone(), uid });
        }
        Err(error) => return Taken::Odd(format!("{key}: {error}")),
    };
    match codec::decode(&content) {
        Ok(value) => {
            let uid = Uid(crate::object::meta_str(&value, "uid").unwrap_or_default().into());
            Taken::Order(key, uid, content, value)
        }
        Err(error) => Taken::Odd(format!("{key}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::link::compress::pack;
    use crate::link::frame::gone;

    fn key() -> Key {
        Key::core("configmaps", "default", "c").unwrap()
    }

    fn value(data: u32) -> serde_json::Value {
        let filler: Vec<u32> = (0..200).collect();
        json!({"metadata": {"name": "c", "namespace": "default", "uid": "u"}, "data": data, "filler": filler})
    }

    fn put(seq: u64, now: u32, base: Option<u32>) -> Heard {
        let base = base.map(|base| codec::encode(&value(base)));
        let packed = pack(&codec::encode(&value(now)), base.as_deref(), true);
        assert_eq!(packed.base.is_some(), base.is_some());
        Heard::Body(seq, Body::Put(packed.put((&key()).into())))
    }

    fn holds(data: u32) -> impl FnMut(&Key) -> Option<(Uid, Vec<u8>)> {
        move |_| Some((Uid("u".into()), codec::encode(&value(data))))
    }

    #[test]
    fn a_change_may_be_told_against_the_change_before_it() {
        let heard = vec![put(1, 2, Some(1)), put(2, 3, Some(2)), Heard::Body(3, Body::Synced)];
        let outcome = Exchange::default().hear(heard, holds(1));
        assert_eq!(outcome.done, [1, 2, 3]);
        let [Deed::Apply(orders), Deed::Synced] = &outcome.deeds[..] else { panic!("{outcome:?}") };
        assert_eq!(orders[..], [Order::Put(key(), value(2)), Order::Put(key(), value(3))]);
    }

    #[test]
    fn without_the_base_it_asks_for_all_of_it_before_it_acknowledges() {
        let outcome = Exchange::default().hear(vec![put(1, 2, Some(1))], holds(7));
        let need = NeedFull { key: (&key()).into(), uid: "u".into() };
        assert_eq!(outcome.deeds, [Deed::Say(Body::NeedFull(need))]);
        let dropped = Heard::Body(1, Body::Drop(gone(&key(), &Uid("u".into()))));
        let outcome = Exchange::default().hear(vec![dropped, put(2, 2, Some(1))], holds(1));
        let need = NeedFull { key: (&key()).into(), uid: "".into() };
        assert_eq!(outcome.deeds[1..], [Deed::Say(Body::NeedFull(need))]);
        assert_eq!(outcome.done, [1, 2]);
    }

    #[test]
    fn items_are_delivered_once_their_numbers_are_acknowledged() {
        let id = |sequence| ItemId { generation: 1, sequence };
        let mut exchange = Exchange::default();
        exchange.item_sent(3, id(1));
        exchange.item_sent(5, id(2));
        assert_eq!(exchange.items_after(), id(2));
        assert_eq!(exchange.hear(vec![Heard::Acked(2)], |_| None).deeds, []);
        assert_eq!(exchange.hear(vec![Heard::Acked(4)], |_| None).deeds, [Deed::Delivered(id(1))]);
        assert_eq!(exchange.hear(vec![Heard::Acked(9)], |_| None).deeds, [Deed::Delivered(id(2))]);
    }

    #[test]
    fn an_inventory_comes_in_parts_and_even_an_empty_one_ends() {
        let mut exchange = Exchange::new(Some(&Set::new()));
        assert_eq!(exchange.inventory(), Some(Body::Inventory(Inventory { holdings: vec![], last: true })));
        assert_eq!(exchange.inventory(), None);
        assert_eq!(Exchange::new(None).inventory(), None);
    }

    #[test]
    fn what_came_after_the_end_is_not_acted_on() {
        let heard = vec![Heard::Closed("cut".into()), Heard::Body(1, Body::Synced)];
        let outcome = Exchange::default().hear(heard, |_| None);
        assert_eq!(outcome, Outcome { closed: Some("cut".into()), ..Outcome::default() });
    }
}
