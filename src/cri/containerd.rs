//! What CRI lacks and containerd's own services have, on the same socket: to import an image from
//! memory, and to hear of exits from a containerd whose CRI has no events yet (before 1.7).
//!
//! Everything is in containerd's namespace `k8s.io`, where its CRI keeps its things. Messages are
//! those of the public `containerd/services/*/v1/*.proto`, as far as they are used.

use super::grpc::{Channel, Incoming, Rpc};
use super::image::{Blob, Image};
use super::{Code, Error, QUICK, Runtime};
use prost::Message;
use std::collections::BTreeMap;
use std::sync::Arc;

const NAMESPACE: &[(&str, &str)] = &[("containerd-namespace", "k8s.io")];

macro_rules! rpc {
    ($service:literal) => {
        Rpc { path: concat!("/containerd.services.", $service), metadata: NAMESPACE }
    };
}

#[derive(Clone, PartialEq, Message)]
struct Empty {}

#[derive(Clone, PartialEq, Message)]
struct LeaseCreate {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(btree_map = "string, string", tag = "3")]
    labels: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
struct LeaseDelete {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, Message)]
struct ContentWrite {
    #[prost(int32, tag = "1")]
    action: i32,
    #[prost(string, tag = "2")]
    reference: String,
    #[prost(int64, tag = "3")]
    total: i64,
    #[prost(string, tag = "4")]
    expected: String,
    #[prost(int64, tag = "5")]
    offset: i64,
    #[prost(bytes = "vec", tag = "6")]
    data: Vec<u8>,
    #[prost(btree_map = "string, string", tag = "7")]
    labels: BTreeMap<String, String>,
}

/// `WriteAction.COMMIT`: write the data, check size and digest, and keep it.
const COMMIT: i32 = 2;

#[derive(Clone, PartialEq, Message)]
struct Descriptor {
    #[prost(string, tag = "1")]
    media_type: String,
    #[prost(string, tag = "2")]
    digest: String,
    #[prost(int64, tag = "3")]
    size: i64,
}

#[derive(Clone, PartialEq, Message)]
struct NamedImage {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(btree_map = "string, string", tag = "2")]
    labels: BTreeMap<String, String>,
    #[prost(message, optional, tag = "3")]
    target: Option<Descriptor>,
}

/// `CreateImageRequest` and `UpdateImageRequest`, which agree in field 1.
#[derive(Clone, PartialEq, Message)]
struct ImagePut {
    #[prost(message, optional, tag = "1")]
    image: Option<NamedImage>,
}

#[derive(Clone, PartialEq, Message)]
struct Subscribe {
    #[prost(string, repeated, tag = "1")]
    filters: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct Any {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct Envelope {
    #[prost(string, tag = "3")]
    topic: String,
    #[prost(message, optional, tag = "4")]
    event: Option<Any>,
}

/// `containerd.events.TaskExit`, `TaskOOM` and `TaskStart` agree in field 1.
#[derive(Clone, PartialEq, Message)]
struct TaskEvent {
    #[prost(string, tag = "1")]
    container_id: String,
}

/// How long CRI may take to notice an image that was added beside it.
const NOTICE: std::time::Duration = std::time::Duration::from_secs(5);

impl Runtime {
    /// Makes `image` known as `name` and returns when CRI can see it. A name that exists already
    /// is pointed at this image. Nothing is unpacked: CRI does that when it first runs it.
    ///
    /// # Errors
    /// See [`Error`]; [`Code::UNIMPLEMENTED`] from a runtime that is not containerd.
    pub async fn import_image(&self, name: &str, image: &Image) -> Result<(), Error> {
        // The lease keeps the garbage collector off until the image refers to the content.
        // Should this process die here, it expires.
        let expiry = jiff::Timestamp::now().saturating_add(jiff::SignedDuration::from_hours(1));
        let expiry = expiry.unwrap_or(jiff::Timestamp::MAX).strftime("%Y-%m-%dT%H:%M:%SZ");
        let lease = LeaseCreate {
            id: format!("holm-{:016x}", fastrand::u64(..)),
            labels: [("containerd.io/gc.expire".into(), expiry.to_string())].into(),
        };
        let create = rpc!("leases.v1.Leases/Create");
        let _: Empty = self.channel.unary(create, &lease, None, QUICK).await?;
        let done = self.write_image(name, image, &lease.id).await;
        let delete = rpc!("leases.v1.Leases/Delete");
        let gone: Result<Empty, Error> =
            self.channel.unary(delete, &LeaseDelete { id: lease.id }, None, QUICK).await;
        done?;
        if let Err(e) = gone {
            log::debug!("a lease of one hour stays until it expires: {e}");
        }
        let started = std::time::Instant::now();
        while self.image_status(name).await?.is_none() {
            if started.elapsed() > NOTICE {
                return Err(Error::Timeout {
                    rpc: "ImageStatus",
                    endpoint: self.endpoint().into(),
                    after: NOTICE,
                });
            }
            smol::Timer::after(std::time::Duration::from_millis(10)).await;
        }
        Ok(())
    }

    async fn write_image(&self, name: &str, image: &Image, lease: &str) -> Result<(), Error> {
        for part in image.parts.iter().chain([&image.manifest]) {
            self.write_blob(part, lease).await?;
        }
        let target = Descriptor {
            media_type: image.manifest.media_type.into(),
            digest: image.manifest.digest.clone(),
            size: size(&image.manifest),
        };
        let image = NamedImage { name: name.into(), labels: BTreeMap::new(), target: Some(target) };
        let put = ImagePut { image: Some(image) };
        let lease = Some(("containerd-lease", lease));
        let create = rpc!("images.v1.Images/Create");
        let created: Result<ImagePut, Error> = self.channel.unary(create, &put, lease, QUICK).await;
        match created {
            Err(e) if e.code() == Some(Code::ALREADY_EXISTS) => {
                let update = rpc!("images.v1.Images/Update");
                let _: ImagePut = self.channel.unary(update, &put, lease, QUICK).await?;
                Ok(())
            }
            other => other.map(|_| ()),
        }
    }

    async fn write_blob(&self, blob: &Blob, lease: &str) -> Result<(), Error> {
        let write = ContentWrite {
            action: COMMIT,
            reference: format!("holm-{}", blob.digest),
            total: size(blob),
            expected: blob.digest.clone(),
            offset: 0,
            data: blob.bytes.clone(),
            labels: blob.labels(),
        };
        let rpc = rpc!("content.v1.Content/Write");
        let lease = Some(("containerd-lease", lease));
        let written: Result<Empty, Error> = self.channel.unary(rpc, &write, lease, QUICK).await;
        match written {
            Err(e) if e.code() == Some(Code::ALREADY_EXISTS) => Ok(()),
            other => other.map(|_| ()),
        }
    }

    /// Every end of a container's or sandbox's main process from now on. CRI itself may notice a
    /// moment later.
    ///
    /// # Errors
    /// See [`Error`]. A runtime that is not containerd answers [`Code::UNIMPLEMENTED`] at the
    /// first [`Exits::next`].
    pub async fn exits(&self) -> Result<Exits, Error> {
        let filters =
            ["/tasks/exit", "/tasks/oom"].map(|topic| format!("namespace==k8s.io,topic==\"{topic}\"")).into();
        let rpc = rpc!("events.v1.Events/Subscribe");
        let incoming = self.channel.stream(rpc, &Subscribe { filters }).await?;
        Ok(Exits { channel: self.channel.clone(), incoming })
    }
}

/// Identifiers of containers and sandboxes whose process ended or ran out of memory.
pub struct Exits {
    channel: Arc<Channel>,
    incoming: Incoming<Envelope>,
}

impl Exits {
    /// The next one; `None` when the runtime ended the stream.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn next(&mut self) -> Result<Option<String>, Error> {
        loop {
            let Some(envelope) = self.incoming.next(&self.channel).await? else {
                return Ok(None);
            };
            let event = envelope.event.unwrap_or_default();
            if let Ok(event) = TaskEvent::decode(event.value.as_slice()) {
                return Ok(Some(event.container_id));
            }
        }
    }
}

fn size(blob: &Blob) -> i64 {
    i64::try_from(blob.bytes.len()).unwrap_or(i64::MAX)
}
