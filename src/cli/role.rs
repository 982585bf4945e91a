//! From flags to a role that runs: every value is checked, and all that is
//! wrong is said at once.

use std::future::Future;
use std::io::Read;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use async_signal::{Signal, Signals};
use futures_lite::{FutureExt, StreamExt};

use super::arguments::{CaRotate, CaStatus, Cloud, Edge, Revoke, TokenCreate};
use super::exit::{Failure, Mistakes};
use super::token::{self, CLOUD_DATA_DIR};
use super::{ca, revoke};
use crate::cloud::hub::Policy;
use crate::cri::Runtime;
use crate::task::Tasks;
use crate::trust::authority::{NODE_LIFE_MAX, NODE_LIFE_MIN, RENEW_WINDOW_MAX};
use crate::trust::code::JoinCode;
use crate::trust::names::{Endpoint, NodeName};
use crate::{cloud, edge};

/// containerd's own default.
const RUNTIME: &str = "unix:///run/containerd/containerd.sock";
/// A join code in a file is shorter than this, in bytes.
const CODE_MAX: u64 = 64 * 1024;

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_| format!("{text:?} is not an address and port such as 0.0.0.0:10000 or [::1]:10000"))
}

fn san(text: &str) -> Result<String, String> {
    match rustls::pki_types::ServerName::try_from(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err(format!("{text:?} is neither a host name nor an address")),
    }
}

/// All addresses: of both families where there are both.
fn any(port: u16) -> SocketAddr {
    match std::path::Path::new("/proc/net/if_inet6").exists() {
        true => SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port),
        false => SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port),
    }
}

/// A data directory: from the root, so that what is said about it holds
/// elsewhere too, and short enough for the socket in it (unix(7): 108 bytes
/// with the zero at the end).
pub(super) fn data_dir(given: &str) -> Result<PathBuf, String> {
    let path = std::path::absolute(given).map_err(|error| format!("{given}: {error}"))?;
    match path.join(crate::net::SOCKET).as_os_str().len() {
        length if length < 108 => Ok(path),
        _ => Err(format!(
            "{given} is too long for the socket that is made in it: choose a path of at most {} bytes",
            107 - 1 - crate::net::SOCKET.len()
        )),
    }
}

/// What the flags of `holm cloud` mean.
fn cloud_options(arguments: &Cloud, mut mistakes: Mistakes) -> Result<cloud::Options, Failure> {
    let data_dir =
        mistakes.value("--data-dir", Some(arguments.data_dir.as_deref().unwrap_or(CLOUD_DATA_DIR)), data_dir);
    let listen = mistakes.value("--listen", arguments.listen.as_deref(), address);
    let api_listen = mistakes.value("--api-listen", arguments.api_listen.as_deref(), address);
    if let (Some(hub), Some(api)) = (listen, api_listen)
        && hub == api
        && hub.port() != 0
    {
        mistakes.add(format!("--listen and --api-listen are both {hub}: give each a port of its own"));
    }
    let advertise = mistakes.list("--advertise", arguments.advertise.as_deref(), str::parse::<Endpoint>);
    let api_san = mistakes.list("--api-san", arguments.api_san.as_deref(), san);
    if arguments.kubeconfig.is_some() {
        mistakes.add("--kubeconfig: this release serves its embedded API only; leave the flag out".into());
    }
    let policy = policy(arguments, &mut mistakes);
    mistakes.end()?;
    Ok(cloud::Options {
        data_dir: data_dir.unwrap_or_else(|| CLOUD_DATA_DIR.into()),
        listen: listen.unwrap_or_else(|| any(10000)),
        api_listen: api_listen.unwrap_or_else(|| any(6443)),
        advertise,
        api_san,
        policy,
    })
}

/// How long nodes' certificates are good for.
fn policy(arguments: &Cloud, mistakes: &mut Mistakes) -> Policy {
    let usual = Policy::default();
    let days = |duration: Duration| duration.as_secs() / (24 * 3600);
    let life =
        mistakes.value("--node-certificate-life", arguments.node_certificate_life.as_deref(), |text| {
            token::parse_ttl(text)
                .ok()
                .filter(|life| *life >= NODE_LIFE_MIN && *life <= NODE_LIFE_MAX)
                .ok_or_else(|| {
                    format!(
                        "{text:?} is not a life for certificates: give 1h to {}d, as in 30d",
                        days(NODE_LIFE_MAX)
                    )
                })
        });
    let window = mistakes.value("--renew-window", arguments.renew_window.as_deref(), |text| match text {
        "0" => Ok(Duration::ZERO),
        text => token::parse_ttl(text).ok().filter(|window| *window <= RENEW_WINDOW_MAX).ok_or_else(|| {
            format!("{text:?} is not a window: give 0 or up to {}d, as in 180d", days(RENEW_WINDOW_MAX))
        }),
    });
    Policy { life: life.unwrap_or(usual.life), window: window.unwrap_or(usual.window) }
}

pub(super) fn cloud(arguments: &Cloud, mistakes: Mistakes) -> Result<(), Failure> {
    let options = cloud_options(arguments, mistakes)?;
    start(|tasks| cloud::run(options, tasks)).map(|_| ())
}

pub(super) fn edge(arguments: &Edge, mut mistakes: Mistakes) -> Result<(), Failure> {
    let data_dir =
        mistakes.value("--data-dir", Some(arguments.data_dir.as_deref().unwrap_or(edge::DATA_DIR)), data_dir);
    let node_name = match arguments.node_name.as_deref() {
        Some(given) => mistakes.value("--node-name", Some(given), str::parse::<NodeName>),
        None if let Some(kept) = data_dir.as_deref().and_then(kept_name) => Some(kept),
        None => {
            let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
            let name = |host: &str| NodeName::from_hostname(host);
            mistakes.value("--node-name is not given, and the host name is none", Some(&host), name)
        }
    };
    let runtime_endpoint = arguments.runtime_endpoint.as_deref().unwrap_or(RUNTIME);
    if let Err(error) = Runtime::new(Default::default(), runtime_endpoint) {
        mistakes.add(error.to_string());
    }
    let api_listen = mistakes.value("--api-listen", arguments.api_listen.as_deref(), address);
    let explicit = node_name.as_ref().filter(|_| arguments.node_name.is_some());
    let join = data_dir.as_deref().and_then(|dir| {
        let adopt = arguments.adopt_cluster;
        join_code(arguments.join.clone(), adopt, explicit, dir, &mut mistakes)
    });
    mistakes.end()?;
    let (Some(data_dir), Some(node_name)) = (data_dir, node_name) else { return Ok(()) };
    let options = edge::Options {
        join,
        adopt_cluster: arguments.adopt_cluster,
        data_dir,
        node_name,
        runtime_endpoint: runtime_endpoint.to_owned(),
        api_listen: api_listen.unwrap_or(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 10550)),
    };
    match start(|tasks| edge::run(options, tasks))? {
        None => Ok(()),
        Some(why) => again(why),
    }
}

/// Runs the program anew in this process: it is to share nothing with what it
/// was.
fn again(why: edge::Again) -> Result<(), Failure> {
    let mut words = std::env::args_os();
    let name = words.next().unwrap_or_default();
    // A move is done once; and a code on standard input is read up.
    let words = words.filter(|word| why != edge::Again::Moved || word != "--adopt-cluster");
    let error = Command::new("/proc/self/exe").arg0(name).args(words).exec();
    Err(Failure::failed(&format!("holm edge cannot be started again by itself ({error}): start it")))
}

/// The name that the board has joined with.
fn kept_name(data_dir: &Path) -> Option<NodeName> {
    // An identity that cannot be read is a matter for the role itself.
    Some(edge::identity(data_dir).ok()??.membership().node.clone())
}

/// The join code: itself, from a file, or from standard input. A board that
/// has joined needs none, unless it is to `adopt` another cluster or to join
/// again: what a unit file still gives it need not be one any more.
fn join_code(
    flag: Option<String>,
    adopt: bool,
    node: Option<&NodeName>,
    data_dir: &Path,
    mistakes: &mut Mistakes,
) -> Option<String> {
    let (label, given) = match (flag.filter(|code| !code.is_empty()), std::env::var_os("HOLM_JOIN")) {
        (Some(given), _) => ("--join", Some(given)),
        // What is not UTF-8 is no code either, and is told so below.
        (None, variable) => ("HOLM_JOIN", variable.map(|text| text.to_string_lossy().into_owned())),
    };
    let given = given.filter(|code| !code.is_empty());
    // An identity that cannot be read is a matter for the role itself.
    let joined = !matches!(edge::identity(data_dir), Ok(None));
    // Only a person would type on standard input, and only to move the board.
    if joined && !adopt && given.as_deref() == Some("-") {
        return given;
    }
    let Some(given) = given else {
        if !joined {
            mistakes.add(edge::EdgeError::Alone.to_string());
        }
        return None;
    };
    let (what, read) = match given.strip_prefix('@') {
        Some(path) => (format!("{label} {given}"), std::fs::File::open(path).and_then(text)),
        None if given == "-" => (format!("{label} - (standard input)"), text(std::io::stdin())),
        None => (label.to_owned(), Ok(given.clone())),
    };
    // What cannot be read keeps no board that has joined from starting.
    if joined {
        return Some(read.map_or(given, |code| code.trim().to_owned()));
    }
    match read {
        Ok(code) => {
            let parsed = mistakes.value(&what, Some(code.trim()), str::parse::<JoinCode>);
            if let (Some(node), Some(bound)) = (node, parsed.and_then(|code| code.node))
                && *node != bound
            {
                mistakes.add(format!(
                    "{what} is for node {bound}, not for --node-name {node}: leave the name out, or make a code with: holm token create --node {node}"
                ));
            }
            Some(code.trim().to_owned())
        }
        Err(error) => {
            mistakes.missing(format!(
                "cannot read the join code of {what} ({error}): check the path, or give the code itself"
            ));
            None
        }
    }
}

fn text(from: impl Read) -> std::io::Result<String> {
    let mut text = String::new();
    from.take(CODE_MAX).read_to_string(&mut text).map(|_| text)
}

pub(super) fn token(arguments: TokenCreate, mut mistakes: Mistakes) -> Result<(), Failure> {
    let options = token::Options {
        node: mistakes.value("--node", arguments.node.as_deref(), str::parse::<NodeName>),
        ttl: mistakes.value("--ttl", arguments.ttl.as_deref(), token::parse_ttl),
        kubeconfig: arguments.kubeconfig.map(PathBuf::from),
        data_dir: arguments.data_dir.map(PathBuf::from),
    };
    mistakes.end()?;
    let code = smol::block_on(token::create(&options)).map_err(|error| Failure::unavailable(&error))?;
    super::out(&format!("{code}\n"))
}

fn ca_options(kubeconfig: Option<String>, data_dir: Option<String>) -> ca::Options {
    ca::Options { kubeconfig: kubeconfig.map(PathBuf::from), data_dir: data_dir.map(PathBuf::from) }
}

pub(super) fn ca_status(arguments: CaStatus, mistakes: Mistakes) -> Result<(), Failure> {
    mistakes.end()?;
    let options = ca_options(arguments.kubeconfig, arguments.data_dir);
    let said = smol::block_on(ca::status(&options)).map_err(|error| Failure::unavailable(&error))?;
    super::out(&said)
}

pub(super) fn ca_rotate(arguments: CaRotate, mistakes: Mistakes) -> Result<(), Failure> {
    mistakes.end()?;
    let options = ca_options(arguments.kubeconfig, arguments.data_dir);
    let said = smol::block_on(ca::rotate(&options, arguments.force))
        .map_err(|error| Failure::unavailable(&error))?;
    super::out(&said)
}

pub(super) fn revoke(arguments: Revoke, mut mistakes: Mistakes) -> Result<(), Failure> {
    let Revoke { node, key, serial, reason, kubeconfig, data_dir } = arguments;
    let subject = revoke::subject(node.as_deref(), key.as_deref(), serial.as_deref());
    let subject = subject.map_err(|line| mistakes.add(line)).ok();
    mistakes.end()?;
    let Some(subject) = subject else { return Ok(()) };
    let options = revoke::Options {
        subject,
        reason: reason.unwrap_or_default(),
        kubeconfig: kubeconfig.map(PathBuf::from),
        data_dir: data_dir.map(PathBuf::from),
    };
    let said = smol::block_on(revoke::revoke(&options)).map_err(|error| Failure::unavailable(&error))?;
    super::out(&said)
}

/// Runs a role on this thread until it fails or is told to stop; told at any
/// moment, also while it still waits to join. Gives what the role ended with,
/// unless it was told to.
fn start<F, T, E>(role: impl FnOnce(Tasks) -> F) -> Result<Option<T>, Failure>
where
    F: Future<Output = Result<T, E>>,
    Failure: From<E>,
{
    crate::logger::start();
    let mut signals = Signals::new([Signal::Term, Signal::Int]).map_err(|error| Failure::failed(&error))?;
    let stop = async {
        signals.next().await;
        log::info!("stopping");
        crate::notify::stopping();
        Ok(None)
    };
    let role = |tasks| async { role(tasks).await.map(Some) };
    let tasks = Tasks::default();
    let executor = tasks.executor().clone();
    smol::block_on(executor.run(stop.or(role(tasks)))).map_err(Failure::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cloud_arguments(values: &[Option<String>; 6]) -> Cloud {
        let [listen, api_listen, advertise, api_san, node_certificate_life, renew_window] = values.clone();
        Cloud {
            data_dir: None,
            listen,
            api_listen,
            advertise,
            api_san,
            node_certificate_life,
            renew_window,
            kubeconfig: None,
            config: None,
            command: None,
        }
    }

    #[test]
    fn what_is_left_out_has_a_default() {
        let options = cloud_options(&cloud_arguments(&Default::default()), Mistakes::default()).unwrap();
        assert_eq!(options.data_dir, Path::new(CLOUD_DATA_DIR));
        assert_eq!((options.listen.port(), options.api_listen.port()), (10000, 6443));
        assert!(options.advertise.is_empty() && options.api_san.is_empty());
    }

    #[test]
    fn certificates_live_within_bounds() {
        let policy = |life: &str, window: &str| {
            let mut arguments = cloud_arguments(&Default::default());
            arguments.node_certificate_life = Some(life.into());
            arguments.renew_window = Some(window.into());
            cloud_options(&arguments, Mistakes::default()).map(|options| options.policy).ok()
        };
        let hours = |hours: u64| Duration::from_secs(hours * 3600);
        assert_eq!(policy("1h", "0"), Some(Policy { life: hours(1), window: hours(0) }));
        assert_eq!(policy("366d", "366d"), Some(Policy { life: hours(366 * 24), window: hours(366 * 24) }));
        for (life, window) in [("59m", "1d"), ("367d", "1d"), ("0", "1d"), ("1d", "367d"), ("1d", "x")] {
            assert_eq!(policy(life, window), None, "{life} {window}");
        }
    }

    #[test]
    fn a_data_directory_is_said_from_the_root() {
        let path = data_dir("here").unwrap();
        assert!(path.is_absolute() && path.ends_with("here"), "{path:?}");
        assert!(data_dir(&format!("/{}", "x".repeat(96))).is_ok());
        assert!(data_dir(&format!("/{}", "x".repeat(97))).is_err());
    }

    proptest! {
        #[test]
        fn whatever_the_values_are_each_mistake_is_one_line(
            values in prop::array::uniform6(prop::option::of(prop_oneof![".*", "[a-z0-9:.,]{0,12}"])),
        ) {
            if let Err(failure) = cloud_options(&cloud_arguments(&values), Mistakes::default()) {
                prop_assert!(!failure.lines.is_empty());
                let lines: Vec<String> = failure.lines.iter().map(|line| super::super::exit::printable(line)).collect();
                prop_assert!(lines.iter().all(|line| !line.chars().any(char::is_control)), "{lines:?}");
            }
        }
    }
}
