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
    error_code(65, "the cloud's store, or a backup of it, is damaged"),
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
    Ca(Ca),
    Revoke(Revoke),
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
    #[argh(subcommand)]
    pub(super) command: Option<CloudCommand>,
}

#[derive(FromArgs)]
#[argh(subcommand)]
pub(super) enum CloudCommand {
    Backup(Backup),
    Restore(Restore),
}

/// Write the cloud's store into a file, while the cloud runs or not. The file
/// holds every Secret and the key of the certificate authority: only its owner
/// may read it, and it should be kept as safe as a private key.
#[derive(FromArgs)]
#[argh(subcommand, name = "backup")]
pub(super) struct Backup {
    /// the file to write; one that is there is replaced
    #[argh(positional)]
    pub(super) file: String,
    /// the cloud's data directory (default /var/lib/holm/cloud)
    #[argh(option, arg_name = "dir")]
    pub(super) data_dir: Option<String>,
}

/// Put a backup in the place of the store of a cloud that does not run. What
/// was there is kept beside it. What the boards hold and the backup does not
/// know stays on them until it is said, while the cloud runs again, that it is
/// to go: holm cloud restore --confirm. Join codes that were not used yet are
/// no longer good.
#[derive(FromArgs)]
#[argh(subcommand, name = "restore")]
pub(super) struct Restore {
    /// a file that holm cloud backup wrote
    #[argh(positional)]
    pub(super) file: Option<String>,
    /// tell the running cloud that what its backup did not know may be dropped
    #[argh(switch)]
    pub(super) confirm: bool,
    /// the cloud's data directory (default /var/lib/holm/cloud)
    #[argh(option, arg_name = "dir")]
    pub(super) data_dir: Option<String>,
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
    /// first start; a board that has joined joins again with a new one
    #[argh(option, arg_name = "code")]
    pub(super) join: Option<String>,
    /// move a board that has joined to the cluster of the join code: it moves
    /// once that cloud has let it in, and stays where it is until then; what
    /// the old cluster ordered runs on until the new cloud has said all that
    /// the board is to hold, and what is not of it is dropped then
    #[argh(switch)]
    pub(super) adopt_cluster: bool,
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

/// The cluster's certificate authority.
#[derive(FromArgs)]
#[argh(subcommand, name = "ca")]
pub(super) struct Ca {
    #[argh(subcommand)]
    pub(super) command: CaCommand,
}

#[derive(FromArgs)]
#[argh(subcommand)]
pub(super) enum CaCommand {
    Status(CaStatus),
    Rotate(CaRotate),
}

/// Tell who issues certificates, and how far a rotation is.
#[derive(FromArgs)]
#[argh(subcommand, name = "status")]
pub(super) struct CaStatus {
    /// the kubeconfig of the cluster (default: KUBECONFIG, then the one in the
    /// data directory)
    #[argh(option, arg_name = "file")]
    pub(super) kubeconfig: Option<String>,
    /// the cloud's data directory (default /var/lib/holm/cloud)
    #[argh(option, arg_name = "dir")]
    pub(super) data_dir: Option<String>,
}

/// Replace the authority by a new one: boards learn of it and renew, without a
/// visit.
#[derive(FromArgs)]
#[argh(subcommand, name = "rotate")]
pub(super) struct CaRotate {
    /// go on without the nodes that a rotation waits for; a board that has not
    /// heard of the new authority when the old one is retired has to join again
    #[argh(switch)]
    pub(super) force: bool,
    /// the kubeconfig of the cluster (default: KUBECONFIG, then the one in the
    /// data directory)
    #[argh(option, arg_name = "file")]
    pub(super) kubeconfig: Option<String>,
    /// the cloud's data directory (default /var/lib/holm/cloud)
    #[argh(option, arg_name = "dir")]
    pub(super) data_dir: Option<String>,
}

/// Lock a board out: its connection ends at once, and only a code made for its
/// name lets a board in again.
#[derive(FromArgs)]
#[argh(subcommand, name = "revoke")]
pub(super) struct Revoke {
    /// the node
    #[argh(positional)]
    pub(super) node: Option<String>,
    /// instead of a node: one key, by the fingerprint that the Node's
    /// annotation holm.dev/key shows
    #[argh(option, arg_name = "hex")]
    pub(super) key: Option<String>,
    /// instead of a node: one certificate, by its serial number
    #[argh(option, arg_name = "hex")]
    pub(super) serial: Option<String>,
    /// why, for those who look at the Node
    #[argh(option, arg_name = "text")]
    pub(super) reason: Option<String>,
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
