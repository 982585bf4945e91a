//! The cloud's own time: what its clock shows, judged by a floor that the
//! cluster keeps, so that all its clouds agree.
//!
//! While the clock is behind the floor, or behind the time this program was
//! built, nothing is issued; sessions go on. The floor is the ConfigMap
//! `holm-system/holm-clock`: deleting it resets the floor.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

use super::cluster::{Cluster, ClusterError};
use crate::boot;
use crate::object::Key;
use crate::task::Tasks;
use crate::trust::UnixTime;
use crate::trust::clock::{Boot, Clock, ClockError, Floor, IssueTime, Kept};
use crate::trust::record::{MANAGED_BY, NAMESPACE};

/// The ConfigMap with the floor.
const CONFIG_MAP: &str = "holm-clock";
/// The one entry in it ([`Kept`]'s text).
const FLOOR: &str = "floor";
/// How often the clock and the floor are looked at.
const LOOK: Duration = Duration::from_secs(60);

/// A handle; clones share it.
#[derive(Clone)]
pub struct CloudTime {
    cluster: Cluster,
    floor: Arc<Mutex<Floor>>,
}

impl CloudTime {
    /// Reads the floor. [`CloudTime::start`] keeps it from then on.
    pub async fn open(cluster: Cluster) -> Result<CloudTime, ClusterError> {
        let time = CloudTime { cluster, floor: Arc::new(Mutex::new(Floor::INITIAL)) };
        time.look(boot::now(), UnixTime::now()).await?;
        Ok(time)
    }

    /// Looks at clock and floor from now on, and says when they disagree.
    pub fn start(&self, tasks: &Tasks) {
        let time = self.clone();
        tasks.supervise("time", move || time.clone().keep());
    }

    /// The time to issue a certificate at.
    ///
    /// # Errors
    /// The clock is behind what has certainly passed.
    pub fn issue(&self) -> Result<IssueTime, ClockError> {
        IssueTime::check(UnixTime::now(), self.floor())
    }

    fn floor(&self) -> Floor {
        *self.floor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn keep(self) -> Result<(), ClusterError> {
        let mut was_right = true;
        loop {
            match self.issue() {
                Ok(_) if !was_right => log::info!("the cloud's clock is believed again"),
                Err(error) if was_right => {
                    log::error!("no certificates are issued or renewed; connected nodes go on: {error}");
                }
                _ => {}
            }
            was_right = self.issue().is_ok();
            smol::Timer::after(LOOK).await;
            self.look(boot::now(), UnixTime::now()).await?;
        }
    }

    /// Takes over the cluster's floor, and moves it if it is worth a write.
    async fn look(&self, boot: Boot, now: UnixTime) -> Result<(), ClusterError> {
        let key = Key::core("configmaps", NAMESPACE, CONFIG_MAP)?;
        let known = self.cluster.get(&key).await?;
        let kept = known.as_ref().and_then(|known| read(&known.value));
        let (floor, write) = moved(kept, boot, now);
        *self.floor.lock().unwrap_or_else(PoisonError::into_inner) = floor;
        let Some(kept) = write else { return Ok(()) };
        let outcome = match known {
            Some(known) => self.cluster.update(&known, to_config_map(&kept)).await,
            None => self.cluster.create(&key, to_config_map(&kept)).await,
        };
        match outcome {
            // Another cloud was quicker; what it wrote is read the next time.
            Err(ClusterError::Conflict(_) | ClusterError::Exists(_)) => Ok(()),
            outcome => outcome.map(|_| ()),
        }
    }
}

/// The floor as it is now, and what to write of it. A clock behind the floor
/// confirms nothing.
fn moved(kept: Option<Kept>, boot: Boot, now: UnixTime) -> (Floor, Option<Kept>) {
    let mut clock = Clock::new(kept, boot);
    let is_right = now >= clock.floor().time();
    let write = is_right.then(|| clock.confirm(now, Duration::ZERO)).flatten();
    (clock.floor(), write)
}

fn read(config_map: &Value) -> Option<Kept> {
    config_map.get("data")?.get(FLOOR)?.as_str()?.parse().ok()
}

fn to_config_map(kept: &Kept) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": CONFIG_MAP, "namespace": NAMESPACE, "labels": {MANAGED_BY.0: MANAGED_BY.1}},
        "data": {FLOOR: kept.to_string()},
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Options, Store};
    use crate::trust::clock::BUILD_TIME;
    use crate::trust::unix;

    const DAY: u64 = 24 * 3600;

    fn after_build(seconds: u64) -> UnixTime {
        unix(BUILD_TIME.as_secs() + seconds)
    }

    fn boot(up: u64) -> Boot {
        Boot { id: "b".into(), up: Duration::from_secs(up) }
    }

    /// A cloud's time over a store of its own.
    fn in_a_cluster<T>(test: impl AsyncFnOnce(CloudTime, Store) -> T) -> T {
        let name = data_encoding::HEXLOWER.encode(&crate::trust::random::<8>().unwrap());
        let directory = std::env::temp_dir().join(format!("holm-time-{name}"));
        let store = Store::open(&directory, Options::default()).unwrap();
        let floor = Arc::new(Mutex::new(Floor::INITIAL));
        let time = CloudTime { cluster: Cluster::embedded(store.clone()), floor };
        let result = smol::block_on(test(time, store));
        std::fs::remove_dir_all(&directory).unwrap();
        result
    }

    #[test]
    fn a_clock_that_goes_back_issues_nothing_until_the_floor_is_reset() {
        in_a_cluster(async |time, store| {
            for day in 0..10 {
                time.look(boot(day * DAY), after_build(day * DAY)).await.unwrap();
            }
            assert_eq!(time.floor().time(), after_build(9 * DAY));
            // Another start, on a machine whose clock lost a week.
            let again = CloudTime { floor: Arc::new(Mutex::new(Floor::INITIAL)), ..time.clone() };
            again.look(boot(5), after_build(2 * DAY)).await.unwrap();
            let behind = IssueTime::check(after_build(2 * DAY), again.floor());
            assert_eq!(behind, Err(ClockError::BeforeFloor { behind: 7 * DAY }));
            let key = Key::core("configmaps", NAMESPACE, CONFIG_MAP).unwrap();
            let object = store.get(&key).unwrap().unwrap();
            time.cluster.remove(&key, &object.uid).await.unwrap();
            again.look(boot(6), after_build(2 * DAY)).await.unwrap();
            assert!(IssueTime::check(after_build(2 * DAY), again.floor()).is_ok());
        });
    }

    #[test]
    fn the_floor_is_written_daily_and_a_clock_ten_years_ahead_leaps_a_day_each() {
        in_a_cluster(async |time, store| {
            let mut writes = 0;
            for minute in 0..(3 * 24 * 60) {
                let before = store.commits();
                time.look(boot(minute * 60), after_build(3650 * DAY)).await.unwrap();
                writes += store.commits() - before;
            }
            assert_eq!(writes, 3);
            assert_eq!(time.floor().time(), after_build(5 * DAY));
        });
    }

    #[test]
    fn before_its_build_time_a_cloud_keeps_no_floor() {
        in_a_cluster(async |time, store| {
            time.look(boot(5), unix(100)).await.unwrap();
            assert_eq!(store.commits(), 0);
            assert!(matches!(IssueTime::check(unix(100), time.floor()), Err(ClockError::BeforeBuild { .. })));
        });
    }
}
