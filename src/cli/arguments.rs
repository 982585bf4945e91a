//! The command line. Every flag works as `--x y` and `--x=y`; values are
//! checked in [`super::role`], so that all mistakes are said at once.

use argh::FromArgs;

/// Kubernetes and devices at the edge.
#[derive(FromArgs)]
#[argh(
    example = "holm cloud --advertise cloud.example.net:10000\nholm token create\nholm edge --join CODE",
    note = "Flags are written --name VALUE or --name=VALUE; holm COMMAND --help lists those of a command.\nEach mistake is one line on standard error, and no command starts before there are none.",
    error_code(0, " done, or stopped by SIGTERM or SIGINT"),
    error_code(1, " failed while running"),
    error_code(64, "wrong flags or configuration"),
    error_code(66, "an input file (--config, --join @FILE) cannot be read"),
    error_code(69, "something needed is not there: an address in use, no container runtime, no API"),
    error_code(73, "the data directory cannot be used"),
    error_code(77, "the cloud does not let this board in, or is not the one that the join code names")
)]
pub(super) struct Holm {
    #[argh(subcommand)]
    pub(super) command: Command,
}

#[derive(FromArgs)]
#[argh(subcommand)]
pub(super) enum Command {
    Cloud(Cloud),
    Edge(Edge),
    Token(Token),
    Get(Get),
    Status(Status),
}

/// Run the cloud: a Kubernetes API, and the hub that edges connect to.
#[derive(FromArgs)]
#[argh(subcommand, name = "cloud")]
pub(super) struct Cloud {
    /// where store and kubeconfig are kept (default /var/lib/holm/cloud)
    #[argh(option, arg_name = "dir")]
    pub(super) data_dir: Option<String>,
    /// where the hub listens for edges (default [::]:10000)
    #[argh(option, arg_name = "addr")]
    pub(super) listen: Option<String>,
    /// where the Kubernetes API listens (default [::]:6443)
    #[argh(option, arg_name = "addr")]
    pub(super) api_listen: Option<String>,
    /// where edges find the hub, as host:port, several with commas (default:
    /// the addresses of this machine's interfaces)
    #[argh(option, arg_name = "host:port,…")]
    pub(super) advertise: Option<String>,
    /// further names and addresses in the API's certificate
    #[argh(option, arg_name = "name,…")]
    pub(super) api_san: Option<String>,
    /// how long nodes' certificates live, from 1h to 366d; they renew at two
    /// thirds of that (default 30d)
    #[argh(option, arg_name = "t")]
    pub(super) node_certificate_life: Option<String>,
    /// how long after its end a node's certificate may still renew, 0 to 366d;
    /// after that the board must join again (default 180d)
    #[argh(option, arg_name = "t")]
    pub(super) renew_window: Option<String>,
    /// serve a real Kubernetes cluster instead of the embedded API (not in this
    /// release)
    #[argh(option, arg_name = "file")]
    pub(super) kubeconfig: Option<String>,
    /// a TOML file of these flags, without the dashes: listen = "[::]:10000";
    /// what is on the command line counts more
    #[argh(option, arg_name = "file")]
    #[expect(dead_code, reason = "its content has become flags by now")]
    pub(super) config: Option<String>,
}

/// Run this board's agent: pods on the container runtime, with or without the
/// cloud.
#[derive(FromArgs)]
#[argh(subcommand, name = "edge")]
pub(super) struct Edge {
    /// where identity and store are kept (default /var/lib/holm/edge)
    #[argh(option, arg_name = "dir")]
    pub(super) data_dir: Option<String>,
    /// the join code that holm token create printed: itself, @FILE, or - for
    /// standard input (default: the environment variable HOLM_JOIN); for the
    /// first start, ignored once the board has joined
    #[argh(option, arg_name = "code")]
    pub(super) join: Option<String>,
    /// the node's name (default: from the host name, or the one that the code
    /// is bound to)
    #[argh(option, arg_name = "n")]
    pub(super) node_name: Option<String>,
    /// the container runtime's socket (default
    /// unix:///run/containerd/containerd.sock)
    #[argh(option, arg_name = "uri")]
    pub(super) runtime_endpoint: Option<String>,
    /// where the board's own API listens (default 127.0.0.1:10550)
    #[argh(option, arg_name = "addr")]
    pub(super) api_listen: Option<String>,
    /// a TOML file of these flags, without the dashes: node-name = "barn-1";
    /// what is on the command line counts more
    #[argh(option, arg_name = "file")]
    #[expect(dead_code, reason = "its content has become flags by now")]
    pub(super) config: Option<String>,
}

/// Make the codes that boards join with.
#[derive(FromArgs)]
#[argh(subcommand, name = "token")]
pub(super) struct Token {
    #[argh(subcommand)]
    pub(super) command: TokenCommand,
}

#[derive(FromArgs)]
#[argh(subcommand)]
pub(super) enum TokenCommand {
    Create(TokenCreate),
}

/// Print a new join code, good for one board.
#[derive(FromArgs)]
#[argh(subcommand, name = "create")]
pub(super) struct TokenCreate {
    /// only this node may use it
    #[argh(option, arg_name = "n")]
    pub(super) node: Option<String>,
    /// how long it is good for: 30m, 24h, 7d (default 24h)
    #[argh(option, arg_name = "t")]
    pub(super) ttl: Option<String>,
    /// the kubeconfig of the cluster (default: KUBECONFIG, then the one in the
    /// data directory)
    #[argh(option, arg_name = "file")]
    pub(super) kubeconfig: Option<String>,
    /// the cloud's data directory (default /var/lib/holm/cloud)
    #[argh(option, arg_name = "dir")]
    pub(super) data_dir: Option<String>,
}

/// Show objects of the cloud or edge that runs on this machine.
#[derive(FromArgs)]
#[argh(subcommand, name = "get")]
pub(super) struct Get {
    /// pods, nodes, configmaps, …
    #[argh(positional)]
    pub(super) resource: String,
    /// only the object of this name
    #[argh(positional)]
    pub(super) name: Option<String>,
    /// in this namespace (default: all; for one object: default)
    #[argh(option, short = 'n')]
    pub(super) namespace: Option<String>,
    /// wide, json or name (default: a table)
    #[argh(option, short = 'o')]
    pub(super) output: Option<String>,
    /// the data directory of the cloud or edge (default: /var/lib/holm/edge,
    /// then /var/lib/holm/cloud)
    #[argh(option, arg_name = "dir")]
    pub(super) data_dir: Option<String>,
}

/// Tell how the cloud or edge that runs on this machine is doing.
#[derive(FromArgs)]
#[argh(subcommand, name = "status")]
pub(super) struct Status {
    /// the data directory of the cloud or edge (default: /var/lib/holm/edge,
    /// then /var/lib/holm/cloud)
    #[argh(option, arg_name = "dir")]
    pub(super) data_dir: Option<String>,
}
