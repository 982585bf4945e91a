//! What can go wrong between Holm and a container runtime.

use std::time::Duration;

/// The gRPC status codes that callers tell apart
/// (<https://grpc.github.io/grpc/core/md_doc_statuscodes.html>).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code(pub u32);

impl Code {
    /// The deadline passed at the server.
    pub const DEADLINE_EXCEEDED: Code = Code(4);
    /// No such sandbox, container or image.
    pub const NOT_FOUND: Code = Code(5);
    /// The thing to create is there already.
    pub const ALREADY_EXISTS: Code = Code(6);
    /// The server has no such call or service.
    pub const UNIMPLEMENTED: Code = Code(12);
    /// The server is not ready.
    pub const UNAVAILABLE: Code = Code(14);
}

/// One failed conversation with the runtime. Every message is one line that names the socket, and
/// the remedy where there is one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `--runtime-endpoint` is not a unix socket's address.
    #[error(
        "--runtime-endpoint {endpoint:?} is not a unix socket: give unix:///path/to/socket or an absolute path"
    )]
    Endpoint {
        /// What was given.
        endpoint: String,
    },
    /// Nothing answers at the socket.
    #[error(
        "no container runtime at {endpoint} ({source}): start containerd, or name its socket with --runtime-endpoint"
    )]
    Absent {
        /// The socket.
        endpoint: String,
        /// What connecting said.
        source: std::io::Error,
    },
    /// Something answers, but not gRPC.
    #[error(
        "what listens at {endpoint} does not speak gRPC ({why}): name the container runtime's socket with --runtime-endpoint"
    )]
    NotGrpc {
        /// The socket.
        endpoint: String,
        /// What the connection said.
        why: String,
    },
    /// A gRPC server without CRI v1.
    #[error(
        "what listens at {endpoint} does not serve CRI runtime.v1: enable containerd's cri plugin (disabled_plugins in its config.toml), or name another socket with --runtime-endpoint"
    )]
    NoCri {
        /// The socket.
        endpoint: String,
    },
    /// The runtime answered a call with an error.
    #[error("{rpc} at {endpoint}: {message} (code {})", code.0)]
    Call {
        /// The call, for example `RunPodSandbox`.
        rpc: &'static str,
        /// The socket.
        endpoint: String,
        /// The gRPC status code.
        code: Code,
        /// The runtime's own words, on one line.
        message: String,
    },
    /// No answer within the call's deadline.
    #[error("{rpc} at {endpoint}: no answer within {} s", after.as_secs())]
    Timeout {
        /// The call.
        rpc: &'static str,
        /// The socket.
        endpoint: String,
        /// The deadline.
        after: Duration,
    },
    /// The connection broke during a call; whether it took effect is unknown.
    #[error("{rpc} at {endpoint}: connection lost: {why}")]
    Lost {
        /// The call.
        rpc: &'static str,
        /// The socket.
        endpoint: String,
        /// What the connection said.
        why: String,
    },
    /// An answer that is not the protocol's: too long, cut short, or not decodable.
    #[error("{rpc} at {endpoint}: bad answer: {why}")]
    Answer {
        /// The call.
        rpc: &'static str,
        /// The socket.
        endpoint: String,
        /// What is wrong with it.
        why: String,
    },
}

impl Error {
    /// The runtime's status code, if it answered with one.
    pub fn code(&self) -> Option<Code> {
        match self {
            Error::Call { code, .. } => Some(*code),
            Error::NoCri { .. } => Some(Code::UNIMPLEMENTED),
            _ => None,
        }
    }

    /// The thing named in the call does not exist.
    pub fn is_not_found(&self) -> bool {
        self.code() == Some(Code::NOT_FOUND)
    }

    /// The runtime itself is away (not: the call was refused). Trying later may help, and says
    /// nothing about the pod.
    pub fn is_away(&self) -> bool {
        matches!(
            self,
            Error::Absent { .. } | Error::NotGrpc { .. } | Error::Lost { .. } | Error::NoCri { .. }
        ) || self.code() == Some(Code::UNAVAILABLE)
    }

    /// The runtime's words alone when it answered, else the whole line: what a pod's status shows.
    pub fn words(&self) -> String {
        match self {
            Error::Call { message, .. } => message.clone(),
            other => other.to_string(),
        }
    }
}
