//! From flags to a role that runs: every value is checked, and all that is
//! wrong is said at once.

use std::future::Future;
use std::io::Read;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use async_signal::{Signal, Signals};
use futures_lite::{FutureExt, StreamExt};

use super::arguments::{Cloud, Edge, TokenCreate};
use super::exit::Failure;
use super::token::{self, CLOUD_DATA_DIR};
use crate::task::Tasks;
use crate::trust::names::{Endpoint, NodeName};
use crate::{cloud, edge};

/// containerd's own default.
const RUNTIME: &str = "unix:///run/containerd/containerd.sock";
/// A join code in a file is shorter than this, in bytes.
const CODE_MAX: u64 = 64 * 1024;

/// Collects what is wrong.
#[derive(Default)]
struct Mistakes(Vec<String>);

impl Mistakes {
    fn value<T, E: std::fmt::Display>(
        &mut self,
        flag: &str,
        text: Option<&str>,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Option<T> {
        match parse(text?) {
            Ok(value) => Some(value),
            Err(error) => {
                self.0.push(format!("{flag}: {error}"));
                None
            }
        }
    }

    fn list<T, E: std::fmt::Display>(
        &mut self,
        flag: &str,
        text: Option<&str>,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Vec<T> {
        let items =
            text.into_iter().flat_map(|text| text.split(',')).map(str::trim).filter(|item| !item.is_empty());
        items.filter_map(|item| self.value(flag, Some(item), &parse)).collect()
    }

    fn end(self) -> Result<(), Failure> {
        if self.0.is_empty() { Ok(()) } else { Err(Failure::mistakes(self.0)) }
    }
}

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

pub(super) fn cloud(arguments: Cloud) -> Result<(), Failure> {
    let mut mistakes = Mistakes::default();
    let listen = mistakes.value("--listen", arguments.listen.as_deref(), address);
    let api_listen = mistakes.value("--api-listen", arguments.api_listen.as_deref(), address);
    let advertise = mistakes.list("--advertise", arguments.advertise.as_deref(), str::parse::<Endpoint>);
    let api_san = mistakes.list("--api-san", arguments.api_san.as_deref(), san);
    if arguments.kubeconfig.is_some() {
        mistakes.0.push("--kubeconfig: this release serves its embedded API only; leave the flag out".into());
    }
    mistakes.end()?;
    let options = cloud::Options {
        data_dir: arguments.data_dir.unwrap_or_else(|| CLOUD_DATA_DIR.into()).into(),
        listen: listen.unwrap_or_else(|| any(10000)),
        api_listen: api_listen.unwrap_or_else(|| any(6443)),
        advertise,
        api_san,
    };
    start(|tasks| cloud::run(options, tasks))
}

pub(super) fn edge(arguments: Edge) -> Result<(), Failure> {
    let mut mistakes = Mistakes::default();
    let node_name = mistakes.value("--node-name", arguments.node_name.as_deref(), str::parse::<NodeName>);
    let api_listen = mistakes.value("--api-listen", arguments.api_listen.as_deref(), address);
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let node_name = match (arguments.node_name.is_some(), node_name) {
        (true, name) => name,
        (false, _) => {
            mistakes.value("the host name, without --node-name", Some(&host), NodeName::from_hostname)
        }
    };
    mistakes.end()?;
    let Some(node_name) = node_name else {
        return Err(Failure::mistakes(vec!["--node-name is missing".into()]));
    };
    let data_dir: PathBuf = arguments.data_dir.unwrap_or_else(|| edge::DATA_DIR.into()).into();
    let given = arguments.join.or_else(|| std::env::var("HOLM_JOIN").ok()).filter(|code| !code.is_empty());
    let options = edge::Options {
        join: given.map(|given| join_code(&given, &data_dir)).transpose()?.flatten(),
        data_dir,
        node_name,
        runtime_endpoint: arguments.runtime_endpoint.unwrap_or_else(|| RUNTIME.into()),
        api_listen: api_listen.unwrap_or(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 10550)),
    };
    start(|tasks| edge::run(options, tasks))
}

/// The code itself, from a file, or from standard input. A board that has
/// joined does not need one, so a file that was removed since is no mistake.
fn join_code(given: &str, data_dir: &std::path::Path) -> Result<Option<String>, Failure> {
    let read = |what: &str, mut from: Box<dyn Read>| {
        let mut text = String::new();
        from.by_ref()
            .take(CODE_MAX)
            .read_to_string(&mut text)
            .map_err(|error| Failure::no_input(&format!("cannot read the join code from {what}: {error}")))?;
        Ok(Some(text.trim().to_owned()))
    };
    match given.strip_prefix('@') {
        Some(path) => match std::fs::File::open(path) {
            Ok(file) => read(path, Box::new(file)),
            Err(_)
                if crate::trust::identity::Identity::load(data_dir)
                    .is_ok_and(|identity| identity.is_some()) =>
            {
                Ok(None)
            }
            Err(error) => Err(Failure::no_input(&format!("cannot read the join code from {path}: {error}"))),
        },
        None if given == "-" => read("standard input", Box::new(std::io::stdin())),
        None => Ok(Some(given.to_owned())),
    }
}

pub(super) fn token(arguments: TokenCreate) -> Result<(), Failure> {
    let mut mistakes = Mistakes::default();
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

/// Runs a role on this thread until it fails or is told to stop; told at any
/// moment, also while it still waits to join.
fn start<F, E>(role: impl FnOnce(Tasks) -> F) -> Result<(), Failure>
where
    F: Future<Output = Result<(), E>>,
    Failure: From<E>,
{
    crate::logger::start();
    let mut signals = Signals::new([Signal::Term, Signal::Int]).map_err(|error| Failure::failed(&error))?;
    let stop = async {
        signals.next().await;
        log::info!("stopping");
        crate::notify::stopping();
        Ok(())
    };
    let tasks = Tasks::default();
    let executor = tasks.executor().clone();
    smol::block_on(executor.run(stop.or(role(tasks)))).map_err(Failure::from)
}
