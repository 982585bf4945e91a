//! A pods task on a private containerd, told by a test instead of a store.

use super::containerd::Containerd;
use holm::cri::{Runtime, image::Image, pause};
use holm::edge::pods::{self, Lookup, Options, PodEvent, Pods, Report, ToPods};
use holm::object::{Key, Object, Origin, Revision, Uid};
use holm::task::Tasks;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The image that tests run: a static busybox.
pub const IMAGE: &str = "holm.dev/test:1";

/// An image of one static busybox, from the tests' programs or from the machine.
pub fn busybox(bin: &Path) -> Result<Image, String> {
    let places = [bin.join("busybox"), "/bin/busybox".into()];
    let program = places.iter().find_map(|p| std::fs::read(p).ok()).ok_or("a static busybox")?;
    Ok(Image::of_program(pause::Arch::own().unwrap(), "/bin/busybox", &program))
}

/// The key of an object in the namespace `default`.
pub fn key(resource: &str, name: &str) -> Key {
    Key { group: "".into(), resource: resource.into(), namespace: "default".into(), name: name.into() }
}

/// A pod object of one container `c` running a shell script; `more` is merged into its spec.
pub fn pod(name: &str, script: &str, more: Value) -> Object {
    let mut spec = json!({
        "containers": [{ "name": "c", "image": IMAGE, "command": ["/bin/busybox", "sh", "-c", script] }],
        "terminationGracePeriodSeconds": 1,
    });
    merge(&mut spec, more);
    let uid = Uid::random();
    let value = json!({ "metadata": { "name": name, "namespace": "default", "uid": uid.0 }, "spec": spec });
    Object { key: key("pods", name), uid, revision: Revision(1), origin: Origin::Cloud, value }
}

/// JSON merge, with lists merged item by item.
fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (Value::Array(into), Value::Array(from)) => {
            for (n, value) in from.into_iter().enumerate() {
                match into.get_mut(n) {
                    Some(old) => merge(old, value),
                    None => into.push(value),
                }
            }
        }
        (into, from) => *into = from,
    }
}

/// ConfigMaps and Secrets of the test.
#[derive(Default)]
pub struct Objects(Mutex<BTreeMap<Key, Arc<Object>>>);

impl Objects {
    /// Makes or changes one.
    pub fn put(&self, resource: &str, name: &str, value: Value) -> Key {
        let key = key(resource, name);
        let uid = Uid(name.into());
        let object = Object { key: key.clone(), uid, revision: Revision(1), origin: Origin::Cloud, value };
        self.0.lock().unwrap().insert(key.clone(), Arc::new(object));
        key
    }
}

impl Lookup for Objects {
    fn get(&self, key: &Key) -> Option<Arc<Object>> {
        self.0.lock().unwrap().get(key).cloned()
    }

    fn host_ips(&self) -> Vec<String> {
        vec!["192.0.2.1".into()]
    }
}

/// One agent's life on a board.
pub struct Board {
    pub tasks: Tasks,
    pub runtime: Runtime,
    pub objects: Arc<Objects>,
    pub pods: Pods,
    reports: async_channel::Receiver<Report>,
    /// The newest status by uid.
    pub statuses: BTreeMap<Uid, Value>,
    pub removed: Vec<Uid>,
    pub events: Vec<PodEvent>,
}

impl Board {
    /// An agent in `folder` on that containerd.
    pub fn start(tasks: &Tasks, folder: &Path, containerd: &Containerd) -> Board {
        let runtime = Runtime::new(tasks.executor().clone(), &containerd.endpoint()).unwrap();
        let (reporting, reports) = async_channel::bounded(256);
        let objects = Arc::new(Objects::default());
        let options = Options {
            log_dir: folder.join("logs"),
            cgroup: super::cgroup_parent().trim_start_matches('/').into(),
            ..Options::new(&folder.join("data"), "island")
        };
        let pods =
            pods::start(tasks.executor().clone(), options, runtime.clone(), objects.clone(), reporting);
        let (statuses, removed, events) = Default::default();
        Board { tasks: tasks.clone(), runtime, objects, pods, reports, statuses, removed, events }
    }

    /// Waits for CRI and imports the test image.
    pub async fn ready(&self, containerd: &Containerd) {
        super::until("CRI", async || self.runtime.version().await.ok()).await;
        self.runtime.import_image(IMAGE, &busybox(containerd.bin()).unwrap()).await.unwrap();
    }

    /// Tells the agent of a pod.
    pub async fn desire(&self, pod: &Object) {
        self.pods.send(ToPods::Desired(Arc::new(pod.clone()))).await;
    }

    /// Takes in reports until `found` answers.
    pub async fn until<T>(&mut self, what: &str, mut found: impl FnMut(&mut Board) -> Option<T>) -> T {
        let started = std::time::Instant::now();
        loop {
            if let Some(found) = found(self) {
                return found;
            }
            let left = Duration::from_secs(40).saturating_sub(started.elapsed());
            let report = async { self.reports.recv().await.ok() };
            let late = async {
                smol::Timer::after(left).await;
                None
            };
            match smol::future::or(report, late).await {
                Some(Report::Status { uid, status, .. }) => {
                    self.statuses.insert(uid, status);
                }
                Some(Report::Removed { uid, .. }) => self.removed.push(uid),
                Some(Report::Event(event)) => self.events.push(event),
                None => {
                    panic!("waited for {what}; statuses: {:#?}; events: {:#?}", self.statuses, self.events)
                }
            }
        }
    }

    /// Waits until the pod's status at that JSON pointer is that value.
    pub async fn until_at(&mut self, pod: &Object, pointer: &str, wanted: Value) -> Value {
        let what = format!("{} of {} to be {wanted}", pointer, pod.key.name);
        let check = |b: &mut Board| {
            let status = b.statuses.get(&pod.uid)?;
            (status.pointer(pointer) == Some(&wanted)).then(|| status.clone())
        };
        self.until(&what, check).await
    }

    /// Waits until the pod's first container runs after at least that many restarts.
    pub async fn until_running_again(&mut self, pod: &Object, restarts: u64) -> Value {
        let what = format!("{} to run after {restarts} restarts", pod.key.name);
        let check = |b: &mut Board| {
            let status = b.statuses.get(&pod.uid)?;
            let container = status.pointer("/containerStatuses/0")?;
            let again = container["restartCount"].as_u64()? >= restarts;
            (again && container["state"]["running"].is_object()).then(|| status.clone())
        };
        self.until(&what, check).await
    }

    /// Waits until nothing is left of the pod.
    pub async fn until_removed(&mut self, pod: &Object) {
        let what = format!("{} to be removed", pod.key.name);
        self.until(&what, |b| b.removed.contains(&pod.uid).then_some(())).await;
    }

    /// Waits until a run of a container has printed just that.
    pub async fn until_printed(&self, folder: &Path, pod: &Object, container: &str, run: u32, text: &str) {
        let path = log_folder(folder, pod).join(container).join(format!("{run}.log"));
        let what = format!("{text:?} in {}", path.display());
        super::until(&what, async || (printed(&path) == text).then_some(())).await;
    }
}

/// The text of a CRI log file, without times and streams.
fn printed(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|l| l.splitn(4, ' ').nth(3).unwrap_or_default().to_owned() + "\n").collect()
}

/// The pod's log folder.
pub fn log_folder(folder: &Path, pod: &Object) -> PathBuf {
    folder.join("logs").join(format!("default_{}_{}", pod.key.name, pod.uid))
}
