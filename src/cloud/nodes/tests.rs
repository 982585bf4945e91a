use serde_json::{Value, json};

use super::*;
use crate::object::{Origin, Uid};
use crate::store::{Action, Durability, Expect, Options, Store, Write};

/// A store, the task over it, and a way to change one and see the other.
struct Bench {
    store: Store,
    nodes: Nodes,
}

fn with_bench(test: impl AsyncFnOnce(Bench)) {
    let directory = std::env::temp_dir().join(format!("holm-nodes-{}", Uid::random()));
    let store = Store::open(&directory, Options::default()).unwrap();
    let tasks = Tasks::default();
    let nodes = Nodes::start(&tasks, Cluster::embedded(store.clone()));
    smol::block_on(tasks.executor().run(test(Bench { store, nodes })));
    std::fs::remove_dir_all(directory).unwrap();
}

fn name() -> NodeName {
    "barn-1".parse().unwrap()
}

impl Bench {
    async fn put(&self, resource: &str, name: &str, rest: Value) {
        let mut value =
            json!({"metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}")}});
        value.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        let action = Action::Put { value, origin: Origin::Local, durability: Durability::Volatile };
        let key = Key::core(resource, "default", name).unwrap();
        self.store.write(Write { key, expect: Expect::Anything, action }).await.unwrap();
    }

    async fn pod(&self, name: &str, node: &str, config: &str) {
        let volumes = json!([{"name": "v", "configMap": {"name": config}}]);
        self.put("pods", name, json!({"spec": {"nodeName": node, "volumes": volumes}})).await;
    }

    async fn remove(&self, resource: &str, name: &str) {
        let key = Key::core(resource, "default", name).unwrap();
        self.store.write(Write { key, expect: Expect::Anything, action: Action::Delete }).await.unwrap();
    }

    async fn attach(&self) -> Attached {
        self.nodes.attach(name(), Claim::default()).await.unwrap()
    }
}

fn names(set: &Set) -> Vec<String> {
    set.keys().map(Key::to_string).collect()
}

/// The next order, as `+key` or `-key`.
async fn next(attached: &Attached) -> String {
    let wait = async { attached.orders.pop().await.unwrap() };
    let (key, order) = crate::task::within(std::time::Duration::from_secs(10), wait).await.unwrap();
    match order.now {
        Some(_) => format!("+{key}"),
        None => format!("-{key}"),
    }
}

#[test]
fn a_node_gets_its_pods_and_what_they_name_and_nothing_else() {
    with_bench(async |bench| {
        for config in ["mine", "theirs", "unused"] {
            bench.put("configmaps", config, json!({"data": {}})).await;
        }
        bench.pod("a", "barn-1", "mine").await;
        bench.pod("b", "barn-2", "theirs").await;
        // The task hears of them in its own time.
        let attached = loop {
            let attached = bench.attach().await;
            if !attached.wanted.is_empty() {
                break attached;
            }
        };
        assert!(attached.complete);
        assert_eq!(names(&attached.wanted), ["configmaps/default/mine", "pods/default/a"]);
    });
}

#[test]
fn changes_become_orders_in_an_order_that_can_be_followed() {
    with_bench(async |bench| {
        let attached = bench.attach().await;
        assert!(attached.wanted.is_empty());
        bench.put("configmaps", "c", json!({"data": {"k": "1"}})).await;
        bench.pod("a", "barn-1", "c").await;
        // What the pod names comes first.
        assert_eq!(next(&attached).await, "+configmaps/default/c");
        assert_eq!(next(&attached).await, "+pods/default/a");
        bench.put("configmaps", "c", json!({"data": {"k": "2"}})).await;
        assert_eq!(next(&attached).await, "+configmaps/default/c");
        bench.put("pods", "a", json!({"spec": {"nodeName": "barn-1"}})).await;
        assert_eq!(next(&attached).await, "-configmaps/default/c");
        assert_eq!(next(&attached).await, "+pods/default/a");
        bench.remove("pods", "a").await;
        assert_eq!(next(&attached).await, "-pods/default/a");
        assert!(attached.orders.try_pop().is_none());
    });
}

#[test]
fn a_status_is_no_order() {
    with_bench(async |bench| {
        let attached = bench.attach().await;
        bench.pod("a", "barn-1", "c").await;
        assert_eq!(next(&attached).await, "+pods/default/a");
        let volumes = json!([{"name": "v", "configMap": {"name": "c"}}]);
        let spec = json!({"nodeName": "barn-1", "volumes": volumes});
        bench.put("pods", "a", json!({"spec": spec, "status": {"phase": "Running"}})).await;
        bench.pod("b", "barn-1", "c").await;
        assert_eq!(next(&attached).await, "+pods/default/b");
    });
}

#[test]
fn what_a_pod_names_may_come_late() {
    with_bench(async |bench| {
        let attached = bench.attach().await;
        bench.pod("a", "barn-1", "late").await;
        assert_eq!(next(&attached).await, "+pods/default/a");
        bench.put("configmaps", "late", json!({"data": {}})).await;
        assert_eq!(next(&attached).await, "+configmaps/default/late");
        bench.remove("configmaps", "late").await;
        assert_eq!(next(&attached).await, "-configmaps/default/late");
    });
}

#[test]
fn a_second_session_ends_the_first() {
    with_bench(async |bench| {
        let first = bench.attach().await;
        let second = bench.attach().await;
        assert!(first.orders.pop().await.is_none());
        bench.pod("a", "barn-1", "c").await;
        assert_eq!(next(&second).await, "+pods/default/a");
    });
}

#[test]
fn a_restored_store_is_not_whole_until_somebody_says_so() {
    with_bench(async |bench| {
        let key = absence::restored_key();
        let value = absence::restored(jiff::Timestamp::now(), None);
        let action = Action::Put { value, origin: Origin::Local, durability: Durability::Durable };
        bench.store.write(Write { key: key.clone(), expect: Expect::Absent, action }).await.unwrap();
        bench.pod("a", "barn-1", "none").await;
        let attached = loop {
            let attached = bench.attach().await;
            assert!(!attached.complete);
            if !attached.wanted.is_empty() {
                break attached;
            }
        };
        // Orders are orders also then.
        bench.pod("b", "barn-1", "none").await;
        assert_eq!(next(&attached).await, "+pods/default/b");
        bench.remove("pods", "a").await;
        assert_eq!(next(&attached).await, "-pods/default/a");
        assert!(attached.completed.is_empty());
        bench.store.write(Write { key, expect: Expect::Anything, action: Action::Delete }).await.unwrap();
        assert_eq!(names(&attached.completed.recv().await.unwrap()), ["pods/default/b"]);
        assert!(bench.attach().await.complete);
    });
}
