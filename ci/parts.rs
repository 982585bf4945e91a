//! What the parts cost that everything passes through: frames, digests,
//! commits. Start it with `ci/bench`, which builds it as the program is built.
//!
//! Times are medians of rounds beside a floor of the same run; nothing here
//! fails for being slow.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::indexing_slicing)]

#[path = "figures/table.rs"]
#[expect(dead_code, reason = "only ci/bench.rs compares with KubeEdge and prints JSON")]
mod table;

use std::hint::black_box;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use holm::link::compress::pack;
use holm::link::sync::{Set, set_digest};
use holm::link::{Body, Frame};
use holm::object::{Key, Origin, Uid, codec, content_hash};
use holm::store::{Action, Durability, Expect, Options, Store, Write as StoreWrite};
use serde_json::{Value, json};
use table::Figure;

/// Rounds of each, after one that does not count.
const ROUNDS: usize = 15;
/// How long a round of a short thing lasts.
const ROUND: Duration = Duration::from_millis(20);

fn main() {
    let mut figures = Vec::new();
    frames(&mut figures);
    digests(&mut figures);
    commits(&mut figures);
    println!("\n{}", table::draw(&figures));
}

/// A pod as a user writes one, about 4 kB of JSON with what the API adds.
fn pod(number: usize) -> Value {
    let env: Vec<Value> = (0..24)
        .map(|n| json!({"name": format!("SETTING_{n}"), "value": format!("value {n} of pod {number}")}))
        .collect();
    let mounts: Vec<Value> =
        (0..8).map(|n| json!({"name": format!("v{n}"), "mountPath": format!("/etc/config/{n}")})).collect();
    let volumes: Vec<Value> = (0..8)
        .map(|n| json!({"name": format!("v{n}"), "configMap": {"name": format!("config-{n}"), "defaultMode": 420}}))
        .collect();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": format!("pod-{number}"), "namespace": "default", "uid": format!("uid-{number}"),
            "creationTimestamp": "2026-11-21T00:00:00Z", "labels": {"app": "sensor", "tier": "edge"},
            "annotations": {"note": "a pod of a usual size, with a few words about what it is for"},
        },
        "spec": {
            "nodeName": "barn-1", "restartPolicy": "Always", "terminationGracePeriodSeconds": 30,
            "containers": [{
                "name": "sensor", "image": "registry.example/sensor:1.2.3", "env": env,
                "resources": {"limits": {"cpu": "100m", "memory": "64Mi"}}, "volumeMounts": mounts,
            }],
            "volumes": volumes,
            "tolerations": [
                {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute"},
                {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute"},
            ],
        },
    })
}

/// Microseconds that one takes, in each round.
fn time(mut one: impl FnMut()) -> Vec<f64> {
    let mut rounds = Vec::new();
    for _ in 0..=ROUNDS {
        let (started, mut count) = (Instant::now(), 0u32);
        while started.elapsed() < ROUND {
            one();
            count += 1;
        }
        rounds.push(started.elapsed().as_secs_f64() * 1e6 / f64::from(count));
    }
    rounds.split_off(1)
}

fn frames(figures: &mut Vec<Figure>) {
    let (before, now) = (pod(1), {
        let mut pod = pod(1);
        pod["spec"]["containers"][0]["image"] = "registry.example/sensor:1.2.4".into();
        pod
    });
    let json = serde_json::to_vec(&now).unwrap();
    let (base, content) = (codec::encode_content(&before), codec::encode_content(&now));
    let key = Key::core("pods", "default", "pod-1").unwrap();
    let frame = |base: Option<&[u8]>, packs| {
        let put = pack(&content, base, packs).put((&key).into());
        Frame { seq: 7, ack: 7, body: Some(Body::Put(put)), has_body: true }
    };
    for (what, base, packs) in [
        ("plain", None, false),
        ("packed", None, true),
        ("packed against what was before", Some(&base[..]), true),
    ] {
        let bytes = frame(base, packs).encode();
        let name = |verb: &str| format!("frame of a pod, {what}: {verb}");
        figures.push(Figure::new(name("size"), "B", vec![bytes.len() as f64]));
        figures.push(Figure::new(
            name("encode"),
            "us",
            time(|| {
                black_box(frame(base, packs).encode());
            }),
        ));
        figures.push(Figure::new(
            name("decode, unpacked"),
            "us",
            time(|| {
                let Some(Body::Put(put)) = Frame::decode(black_box(&bytes)).unwrap().body else { return };
                let content = holm::link::compress::unpack(&put, |_| base.map(<[u8]>::to_vec)).unwrap();
                black_box(codec::decode(&content).unwrap());
            }),
        ));
    }
    figures.push(Figure::new("the same pod as JSON (the floor): size", "B", vec![json.len() as f64]));
    figures.push(Figure::new(
        "the same pod as JSON: write",
        "us",
        time(|| {
            black_box(serde_json::to_vec(black_box(&now)).unwrap());
        }),
    ));
    figures.push(Figure::new(
        "the same pod as JSON: read",
        "us",
        time(|| {
            black_box(serde_json::from_slice::<Value>(black_box(&json)).unwrap());
        }),
    ));
}

fn digests(figures: &mut Vec<Figure>) {
    let pods: Vec<Value> = (0..1000).map(pod).collect();
    let set = || -> Set {
        pods.iter()
            .enumerate()
            .map(|(number, pod)| {
                let key = Key::core("pods", "default", &format!("pod-{number}")).unwrap();
                (key, (Uid(format!("uid-{number}")), content_hash(pod)))
            })
            .collect()
    };
    let ready = set();
    let bytes: Vec<u8> = pods.iter().flat_map(codec::encode_content).collect();
    figures.push(Figure::new(
        "digest over 1,000 pods, from nothing",
        "us",
        time(|| {
            black_box(set_digest(&set()));
        }),
    ));
    figures.push(Figure::new(
        "digest over 1,000 pods, from their hashes",
        "us",
        time(|| {
            black_box(set_digest(&ready));
        }),
    ));
    figures.push(Figure::new(
        "SHA-256 over the same bytes (the floor)",
        "us",
        time(|| {
            black_box(ring::digest::digest(&ring::digest::SHA256, black_box(&bytes)));
        }),
    ));
}

/// Bytes that this process has had written to its disk.
fn written() -> f64 {
    let io = std::fs::read_to_string("/proc/self/io").unwrap();
    io.lines().find_map(|line| line.strip_prefix("write_bytes: ")).unwrap().parse().unwrap()
}

fn commits(figures: &mut Vec<Figure>) {
    // On a disk, if the build is: memory would show neither bytes nor syncs.
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("parts-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let store = Store::open(&folder, Options::default()).unwrap();
    let mut file = std::fs::File::create(folder.join("floor")).unwrap();
    let mut round = 0;
    for objects in [1, 10, 1000] {
        let (mut times, mut bytes, mut floor) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..=ROUNDS {
            round += 1;
            let started = Instant::now();
            file.write_all(&[0; 4096]).unwrap();
            file.sync_data().unwrap();
            floor.push(started.elapsed().as_secs_f64() * 1e3);
            let writes = (0..objects)
                .map(|number| {
                    let mut value = pod(number);
                    value["metadata"]["annotations"]["round"] = round.to_string().into();
                    StoreWrite {
                        key: Key::core("pods", "default", &format!("pod-{number}")).unwrap(),
                        expect: Expect::Anything,
                        action: Action::Put { value, origin: Origin::Cloud, durability: Durability::Durable },
                    }
                })
                .collect();
            let (before, started) = (written(), Instant::now());
            let outcomes = smol::block_on(store.write_all(writes)).unwrap();
            times.push(started.elapsed().as_secs_f64() * 1e3);
            assert!(outcomes.iter().all(Result::is_ok));
            bytes.push((written() - before) / 1e3);
        }
        // The first makes the file grow.
        let rest = |mut all: Vec<f64>| all.split_off(1);
        let name = |what: &str| format!("commit of {objects} pods: {what}");
        figures.push(Figure::new(name("time"), "ms", rest(times)));
        figures.push(Figure::new(name("4 KiB and a sync (the floor)"), "ms", rest(floor)));
        figures.push(Figure::new(name("written"), "kB", rest(bytes)));
    }
    drop(store);
    let _ = std::fs::remove_dir_all(&folder);
}
