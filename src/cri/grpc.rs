//! gRPC over one unix socket: unary calls and server streams on h2, nothing more
//! (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>).

use super::error::{Code, Error};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::client::{ResponseFuture, SendRequest};
use prost::Message;
use smol::net::unix::UnixStream;
use std::marker::PhantomData;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::compat::FuturesAsyncReadCompatExt as _;

/// The longest message accepted or sent: the limit kubelets and containerd use.
pub(super) const MESSAGE_LIMIT: usize = 16 << 20;

/// One call of a service.
#[derive(Clone, Copy)]
pub(super) struct Rpc {
    /// `/package.Service/Method`.
    pub path: &'static str,
    /// Headers beside gRPC's own.
    pub metadata: &'static [(&'static str, &'static str)],
}

impl Rpc {
    fn name(self) -> &'static str {
        self.path.rsplit('/').next().unwrap_or(self.path)
    }
}

/// A connection that makes itself when it is needed and again after it broke.
pub(super) struct Channel {
    endpoint: String,
    path: PathBuf,
    executor: Arc<smol::Executor<'static>>,
    live: smol::lock::Mutex<Option<SendRequest<Bytes>>>,
}

impl Channel {
    /// Takes `unix:///path` or an absolute path. Does not connect.
    pub fn new(executor: Arc<smol::Executor<'static>>, endpoint: &str) -> Result<Channel, Error> {
        let path = endpoint.strip_prefix("unix://").unwrap_or(endpoint);
        if !path.starts_with('/') {
            return Err(Error::Endpoint { endpoint: endpoint.into() });
        }
        let endpoint = format!("unix://{path}");
        Ok(Channel { endpoint, path: path.into(), executor, live: smol::lock::Mutex::new(None) })
    }

    /// The socket, as `unix:///path`.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// A handle that is ready for one request, of the living connection or of a new one.
    async fn ready(&self) -> Result<SendRequest<Bytes>, Error> {
        let mut live = self.live.lock().await;
        if let Some(handle) = live.take()
            && let Ok(handle) = handle.ready().await
        {
            *live = Some(handle.clone());
            return Ok(handle);
        }
        let socket = UnixStream::connect(&self.path)
            .await
            .map_err(|source| Error::Absent { endpoint: self.endpoint.clone(), source })?;
        let not_grpc = |e: h2::Error| Error::NotGrpc { endpoint: self.endpoint.clone(), why: e.to_string() };
        let (handle, connection) =
            h2::client::Builder::new().handshake(socket.compat()).await.map_err(not_grpc)?;
        let endpoint = self.endpoint.clone();
        // Ends when the last handle is gone or the socket closes.
        self.executor
            .spawn(async move {
                if let Err(e) = connection.await {
                    log::debug!("connection to {endpoint} ended: {e}");
                }
            })
            .detach();
        let handle = handle.ready().await.map_err(not_grpc)?;
        *live = Some(handle.clone());
        Ok(handle)
    }

    async fn open<Q: Message>(
        &self,
        rpc: Rpc,
        request: &Q,
        extra: Option<(&'static str, &str)>,
        deadline: Option<Duration>,
    ) -> Result<ResponseFuture, Error> {
        let mut handle = self.ready().await?;
        let body =
            frame(request).ok_or_else(|| self.answer(rpc, format!("request over {MESSAGE_LIMIT} bytes")))?;
        let mut head = http::Request::post(format!("http://localhost{}", rpc.path))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        if let Some(deadline) = deadline {
            head = head.header("grpc-timeout", format!("{}m", deadline.as_millis().min(99_999_999)));
        }
        for (name, value) in rpc.metadata.iter().copied().chain(extra) {
            head = head.header(name, value);
        }
        let head = head.body(()).map_err(|e| self.answer(rpc, e.to_string()))?;
        let (response, mut upload) = handle.send_request(head, false).map_err(|e| self.lost(rpc, &e))?;
        // h2 buffers what the peer's window does not take yet; one message of bounded size.
        upload.send_data(body, true).map_err(|e| self.lost(rpc, &e))?;
        Ok(response)
    }

    /// One request, one answer, within `deadline`.
    pub async fn unary<Q: Message, A: Message + Default>(
        &self,
        rpc: Rpc,
        request: &Q,
        extra: Option<(&'static str, &str)>,
        deadline: Duration,
    ) -> Result<A, Error> {
        let call = async {
            let response = self.open(rpc, request, extra, Some(deadline)).await?;
            let mut incoming = Incoming::<A>::new(rpc, response);
            let answer = incoming.next(self).await?;
            let answer = answer.ok_or_else(|| self.answer(rpc, "no message in it".into()))?;
            // The status comes after the message.
            while incoming.next(self).await?.is_some() {}
            Ok(answer)
        };
        let timeout = async {
            smol::Timer::after(deadline).await;
            Err(Error::Timeout { rpc: rpc.name(), endpoint: self.endpoint.clone(), after: deadline })
        };
        smol::future::or(call, timeout).await
    }

    /// One request, many answers. Returns when the request is on its way: a server that has
    /// nothing to say yet says nothing, so a refusal shows at the first [`Incoming::next`].
    pub async fn stream<Q: Message, A: Message + Default>(
        &self,
        rpc: Rpc,
        request: &Q,
    ) -> Result<Incoming<A>, Error> {
        Ok(Incoming::new(rpc, self.open(rpc, request, None, None).await?))
    }

    fn lost(&self, rpc: Rpc, error: &h2::Error) -> Error {
        // A peer that is no HTTP/2 server shows as a protocol error at the first frame.
        if error.is_go_away() && !error.is_remote() && error.reason().is_some() {
            return self.not_grpc(error.to_string());
        }
        Error::Lost { rpc: rpc.name(), endpoint: self.endpoint.clone(), why: error.to_string() }
    }

    fn not_grpc(&self, why: String) -> Error {
        Error::NotGrpc { endpoint: self.endpoint.clone(), why }
    }

    fn answer(&self, rpc: Rpc, why: String) -> Error {
        Error::Answer { rpc: rpc.name(), endpoint: self.endpoint.clone(), why }
    }

    fn status(&self, rpc: Rpc, headers: &http::HeaderMap) -> Option<Result<(), Error>> {
        let code = headers.get("grpc-status")?.to_str().ok()?.parse().ok()?;
        if code == 0 {
            return Some(Ok(()));
        }
        let code = Code(code);
        let message = headers.get("grpc-message").and_then(|m| m.to_str().ok()).unwrap_or("");
        if code == Code::UNIMPLEMENTED
            && rpc.path.starts_with("/runtime.v1.")
            && message.contains("unknown service")
        {
            return Some(Err(Error::NoCri { endpoint: self.endpoint.clone() }));
        }
        let message = one_line(&percent_decoded(message));
        Some(Err(Error::Call { rpc: rpc.name(), endpoint: self.endpoint.clone(), code, message }))
    }
}

/// The answers of one call, in order.
pub(super) struct Incoming<A> {
    rpc: Rpc,
    state: State,
    buffer: BytesMut,
    message: PhantomData<fn() -> A>,
}

enum State {
    Waiting(ResponseFuture),
    Reading(h2::RecvStream),
    Ended,
}

impl<A: Message + Default> Incoming<A> {
    fn new(rpc: Rpc, response: ResponseFuture) -> Self {
        let state = State::Waiting(response);
        Incoming { rpc, state, buffer: BytesMut::new(), message: PhantomData }
    }

    /// The next answer; `None` after the last one of a call that succeeded.
    pub async fn next(&mut self, channel: &Channel) -> Result<Option<A>, Error> {
        let rpc = self.rpc;
        if let State::Waiting(response) = &mut self.state {
            let response = response.await.map_err(|e| channel.lost(rpc, &e))?;
            if response.status() != http::StatusCode::OK {
                return Err(channel.not_grpc(format!("HTTP status {}", response.status())));
            }
            let (head, body) = response.into_parts();
            self.state = State::Reading(body);
            // A call that fails at once carries its status in the headers.
            if let Some(status) = channel.status(rpc, &head.headers) {
                self.state = State::Ended;
                return status.map(|()| None);
            }
        }
        let State::Reading(body) = &mut self.state else {
            return Ok(None);
        };
        loop {
            match split(&mut self.buffer) {
                Ok(Some(message)) => {
                    return A::decode(message).map(Some).map_err(|e| channel.answer(rpc, e.to_string()));
                }
                Ok(None) => {}
                Err(why) => return Err(channel.answer(rpc, why)),
            }
            match body.data().await {
                Some(Ok(data)) => {
                    self.buffer.extend_from_slice(&data);
                    // Only fails on a stream that is closed, which the next read reports.
                    let _ = body.flow_control().release_capacity(data.len());
                }
                Some(Err(e)) => return Err(channel.lost(rpc, &e)),
                None => break,
            }
        }
        if !self.buffer.is_empty() {
            return Err(channel.answer(rpc, "cut short".into()));
        }
        let trailers = body.trailers().await;
        self.state = State::Ended;
        match trailers {
            Ok(Some(trailers)) => match channel.status(rpc, &trailers) {
                Some(status) => status.map(|()| None),
                None => Err(channel.answer(rpc, "no status after it".into())),
            },
            Ok(None) => Ok(None),
            Err(e) => Err(channel.lost(rpc, &e)),
        }
    }
}

/// A message with gRPC's five-byte prefix; `None` if it is over the limit.
fn frame<M: Message>(message: &M) -> Option<Bytes> {
    let length = message.encoded_len();
    let prefix = u32::try_from(length).ok().filter(|_| length <= MESSAGE_LIMIT)?;
    let mut out = BytesMut::with_capacity(length.checked_add(5)?);
    out.put_u8(0); // not compressed
    out.put_u32(prefix);
    message.encode(&mut out).ok()?;
    Some(out.freeze())
}

/// Takes one whole message off the front of `buffer`, if it is there.
fn split(buffer: &mut BytesMut) -> Result<Option<Bytes>, String> {
    let Some((prefix, rest)) = buffer.split_first_chunk::<5>() else {
        return Ok(None);
    };
    let [compressed, a, b, c, d] = *prefix;
    let length = u32::from_be_bytes([a, b, c, d]);
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if compressed != 0 {
        return Err("compressed, which was not offered".into());
    }
    if length > MESSAGE_LIMIT {
        return Err(format!("{length} bytes, over the limit of {MESSAGE_LIMIT}"));
    }
    if rest.len() < length {
        return Ok(None);
    }
    buffer.advance(5);
    Ok(Some(buffer.split_to(length).freeze()))
}

/// `grpc-message` is percent-encoded UTF-8; what does not decode is kept as it is.
fn percent_decoded(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.as_bytes();
    while let Some((&first, rest)) = bytes.split_first() {
        let hex = rest.get(..2).and_then(|h| std::str::from_utf8(h).ok());
        match hex.filter(|_| first == b'%').and_then(|h| u8::from_str_radix(h, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                bytes = rest.get(2..).unwrap_or_default();
            }
            None => {
                out.push(first);
                bytes = rest;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::super::v1::{SandboxId, VersionResponse};
    use super::*;

    #[test]
    fn frames_split_as_they_were_made() {
        let one = SandboxId { pod_sandbox_id: "abc".into() };
        let framed = frame(&one).unwrap();
        let mut buffer = BytesMut::new();
        for (n, byte) in framed.iter().enumerate() {
            assert_eq!(split(&mut buffer), Ok(None), "after {n} bytes");
            buffer.put_u8(*byte);
        }
        let message = split(&mut buffer).unwrap().unwrap();
        assert_eq!(SandboxId::decode(message).unwrap(), one);
        assert!(buffer.is_empty());
    }

    #[test]
    fn a_length_is_refused_before_it_is_awaited() {
        let mut buffer = BytesMut::from(&[0, 0xff, 0xff, 0xff, 0xff][..]);
        assert!(split(&mut buffer).unwrap_err().contains("over the limit"));
        let mut buffer = BytesMut::from(&[1, 0, 0, 0, 0][..]);
        assert!(split(&mut buffer).unwrap_err().contains("compressed"));
    }

    #[test]
    fn messages_of_errors_are_read_as_sent() {
        assert_eq!(percent_decoded("a%20b%C3%A9 100%"), "a bé 100%");
        assert_eq!(one_line("a\n  b\t"), "a b");
    }

    #[test]
    fn unknown_fields_are_skipped() {
        // Field 99, length-delimited, then field 2.
        let bytes: &[u8] = &[0x9a, 0x06, 0x01, b'x', 0x12, 0x01, b'c'];
        let answer = VersionResponse::decode(bytes).unwrap();
        assert_eq!(answer.runtime_name, "c");
    }

    #[test]
    fn endpoints_have_two_forms() {
        let executor = Arc::new(smol::Executor::new());
        for given in ["unix:///run/x.sock", "/run/x.sock"] {
            let channel = Channel::new(executor.clone(), given).unwrap();
            assert_eq!(channel.endpoint(), "unix:///run/x.sock");
        }
        for given in ["", "run/x.sock", "tcp://1.2.3.4:5", "unix://x"] {
            assert!(matches!(Channel::new(executor.clone(), given), Err(Error::Endpoint { .. })));
        }
    }
}
