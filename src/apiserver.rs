//! The Kubernetes HTTP API over a store: the same on the cloud and on a board.
//!
//! A request is taken apart (`http`, `request`), allowed (`authorize`), and
//! served from the store (`read`, `watch`, `write`, `delete`). What is special
//! to a kind is in its row of the `registry`.

mod authorize;
pub mod backup;
mod defaults;
mod delete;
mod discovery;
mod events;
mod http;
mod namespaces;
mod openapi;
mod patch;
mod protobuf;
mod read;
mod registry;
mod request;
mod status;
mod strategic;
mod table;
pub(crate) mod validate;
mod watch;
mod write;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use ::http::{Method, Request, Response};
use bytes::Bytes;
use futures_lite::{AsyncRead, AsyncWrite};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use serde_json::json;
use smol_hyper::rt::{FuturesIo, SmolTimer};

use self::authorize::{Attributes, authorize};
use self::http::{Body, Form, answer, plain};
use self::request::{Query, Route, Target};
use crate::object::Origin;
use crate::store::{Scope, Store};

pub use authorize::User;
pub use status::ApiError;
pub use table::pod_status;

/// A client sends the head of a request within this time; a connection on
/// which nothing is asked is closed after it.
const HEAD_TIME: Duration = Duration::from_secs(90);
/// The head of a request may have this many bytes.
const MOST_HEAD: usize = 64 << 10;

/// Whose API it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// The cluster's own: everything can be written.
    Cloud,
    /// A board's, over its copy: everything is read-only.
    Board {
        /// The cloud that the board belongs to, as a person knows it.
        cloud: String,
    },
}

/// What an API server is told of the world around it.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whose API it is.
    pub role: Role,
    /// The version of Holm (`0.1.0`), for `/version`.
    pub version: String,
}

struct Inner {
    store: Store,
    options: Options,
    /// Held while the store is copied: one copy at a time.
    copying: smol::lock::Mutex<()>,
}

/// The API over one store. Clones share it.
#[derive(Clone)]
pub struct ApiServer {
    inner: Arc<Inner>,
}

/// One request, its body read.
struct Call {
    query: Query,
    form: Form,
    content_type: String,
    body: Bytes,
}

impl Call {
    /// True if nothing is to be written (`dryRun=All`).
    fn is_dry_run(&self) -> Result<bool, ApiError> {
        match self.query.get("dryRun") {
            None => Ok(false),
            Some("All") => Ok(true),
            Some(other) => Err(ApiError::bad_request(format!("dryRun: {other:?} is not supported: All"))),
        }
    }
}

/// The version of the API that is served, in front of Holm's own.
const KUBERNETES: &str = "v1.32.0+holm";

impl ApiServer {
    /// The API over a store.
    pub fn new(store: Store, options: Options) -> ApiServer {
        ApiServer { inner: Arc::new(Inner { store, options, copying: Default::default() }) }
    }

    /// Empties and removes namespaces that are being deleted. A task of the cloud.
    pub async fn finish_namespaces(self) {
        namespaces::run(self.inner.store.clone()).await;
    }

    /// Removes Events that are old or too many. A task of either role.
    pub async fn expire_events(self) {
        events::run(self.inner.store.clone()).await;
    }

    /// Serves one connection until the client closes it or breaks the protocol.
    ///
    /// Whoever made the connection knows who is at its other end.
    pub async fn serve_connection<IO>(&self, io: IO, user: User) -> Result<(), hyper::Error>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let user = Arc::new(user);
        let service = service_fn(|request| {
            let (api, user) = (self.clone(), user.clone());
            async move { Ok::<_, Infallible>(api.serve(request, &user).await) }
        });
        http1::Builder::new()
            .timer(SmolTimer::new())
            .header_read_timeout(HEAD_TIME)
            .max_header_size(MOST_HEAD)
            .max_buf_size(MOST_HEAD)
            .serve_connection(FuturesIo::new(io), service)
            .await
    }

    async fn serve(&self, request: Request<Incoming>, user: &User) -> Response<Body> {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        match self.handle(request, user).await {
            Ok(response) => response,
            Err(error) => {
                log::debug!("{method} {path} by {}: {} {error}", user.name, error.code);
                answer(error.code, "application/json", &error.to_value())
            }
        }
    }

    async fn handle(&self, request: Request<Incoming>, user: &User) -> Result<Response<Body>, ApiError> {
        let (head, body) = request.into_parts();
        let query = Query::parse(head.uri.query().unwrap_or_default());
        match request::route(head.uri.path())? {
            Route::Other(path) => {
                authorize(user, Attributes::Path(&path))?;
                if head.method != Method::GET && head.method != Method::HEAD {
                    return Err(ApiError::not_allowed());
                }
                if path == "/openapi/v2" {
                    return self.openapi_v2(&head.headers);
                }
                if path == backup::PATH
                    && self.inner.options.role == Role::Cloud
                    && head.method == Method::GET
                {
                    let _one = self.inner.copying.lock().await;
                    return backup::backup(&self.inner.store).await;
                }
                self.other(&path, http::accepted(&head.headers).unwrap_or(Form::Whole))
            }
            Route::Resource(target) => {
                let verb = verb(&head.method, &target, &query)?;
                let resource = match &target.subresource {
                    Some(subresource) => format!("{}/{subresource}", target.row.resource),
                    None => target.row.resource.to_owned(),
                };
                authorize(
                    user,
                    Attributes::Resource {
                        verb,
                        group: target.row.group,
                        resource: &resource,
                        namespace: target.key_namespace(),
                        name: target.name.as_deref().unwrap_or_default(),
                    },
                )?;
                let form = http::accepted(&head.headers)?;
                self.check_writable(verb, &target)?;
                let content_type = http::content_type(&head.headers);
                let body = match verb {
                    "get" | "list" | "watch" => Bytes::new(),
                    _ => http::read_body(&head.headers, body).await?,
                };
                let call = Call { query, form, content_type, body };
                let store = &self.inner.store;
                match verb {
                    "get" => read::get(store, &call, &target),
                    "list" => read::list(store, &call, &target),
                    "watch" => watch::watch(store, &call, &target),
                    "create" => write::create(store, &call, &target).await,
                    "update" => write::update(store, &call, &target).await,
                    "patch" => write::patch(store, &call, &target).await,
                    "delete" => delete::delete(store, &call, &target).await,
                    _ => delete::delete_collection(store, &call, &target).await,
                }
            }
        }
    }

    /// On a board nothing is written: what is there comes from its cloud.
    fn check_writable(&self, verb: &str, target: &Target) -> Result<(), ApiError> {
        let Role::Board { cloud } = &self.inner.options.role else { return Ok(()) };
        if matches!(verb, "get" | "list" | "watch") {
            return Ok(());
        }
        let name = target.name.as_deref().unwrap_or_default();
        let qualified = target.row.qualified();
        if target.name.is_some() && read::find(&self.inner.store, target)?.origin == Origin::Cloud {
            return Err(ApiError::forbidden(format!(
                "{qualified} {name:?} is forbidden: it is managed by the cloud {cloud}; change it there"
            )));
        }
        Err(ApiError::forbidden(format!(
            "{qualified} is forbidden: this board's objects are managed by its cloud {cloud}"
        )))
    }

    /// The one answer that is protobuf only.
    fn openapi_v2(&self, headers: &::http::HeaderMap) -> Result<Response<Body>, ApiError> {
        let mut accepted =
            headers.get_all(::http::header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
        match accepted.any(|value| value.contains(openapi::v2::ASKED)) {
            true => Ok(http::whole(openapi::v2::PROTOBUF, openapi::v2::document(KUBERNETES))),
            false => {
                let message =
                    format!("only the following media types are accepted: {}", openapi::v2::PROTOBUF);
                Err(ApiError::new(406, "NotAcceptable", message))
            }
        }
    }

    /// Paths outside of the resources.
    fn other(&self, path: &str, form: Form) -> Result<Response<Body>, ApiError> {
        const JSON: &str = "application/json";
        const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
        let aggregated = form == Form::Discovery;
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let value = match parts.as_slice() {
            ["livez", ..] => return Ok(plain(200, "ok".into())),
            ["healthz" | "readyz", ..] => {
                if let Err(trouble) = self.inner.store.health() {
                    return Err(trouble.error.into());
                }
                // A store that cannot be read makes the rest useless.
                self.inner.store.list(&Scope::all("", "namespaces"), None, Some(1))?;
                return Ok(plain(200, "ok".into()));
            }
            ["version"] => self.version(),
            ["api"] if aggregated => return Ok(answer(200, AGGREGATED, &discovery::aggregated(true))),
            ["apis"] if aggregated => return Ok(answer(200, AGGREGATED, &discovery::aggregated(false))),
            ["api"] => discovery::versions(),
            ["apis"] => discovery::group_list(),
            ["api", version] => discovery::resources("", version).ok_or_else(ApiError::no_such_path)?,
            ["apis", group] => discovery::group(group).ok_or_else(ApiError::no_such_path)?,
            ["apis", group, version] => {
                discovery::resources(group, version).ok_or_else(ApiError::no_such_path)?
            }
            ["openapi", "v3"] => openapi::index(),
            ["openapi", "v3", rest @ ..] => {
                openapi::document(&rest.join("/"), KUBERNETES).ok_or_else(ApiError::no_such_path)?
            }
            [] => {
                json!({"paths": ["/api", "/apis", "/healthz", "/livez", "/openapi/v2", "/openapi/v3", "/readyz", "/version"]})
            }
            _ => return Err(ApiError::no_such_path()),
        };
        Ok(answer(200, JSON, &value))
    }

    fn version(&self) -> serde_json::Value {
        json!({
            "major": "1",
            "minor": "32",
            "gitVersion": format!("{KUBERNETES}-{}", self.inner.options.version),
            "gitCommit": "",
            "gitTreeState": "",
            "buildDate": "1970-01-01T00:00:00Z",
            "goVersion": "",
            "compiler": "rustc",
            "platform": format!("{}/{}", std::env::consts::OS, architecture()),
        })
    }
}

/// The processor as Kubernetes names it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// What a method means at a target (Kubernetes: "Determine the Request Verb").
fn verb(method: &Method, target: &Target, query: &Query) -> Result<&'static str, ApiError> {
    let is_one = target.name.is_some();
    match *method {
        Method::GET if target.subresource.as_deref().is_some_and(|name| name != "status") => {
            Err(ApiError::not_allowed())
        }
        Method::GET if query.flag("watch") => Ok("watch"),
        Method::GET if is_one => Ok("get"),
        Method::GET => Ok("list"),
        Method::POST if !is_one || target.subresource.is_some() => Ok("create"),
        Method::PUT if is_one && target.subresource.as_deref() != Some("binding") => Ok("update"),
        Method::PATCH if is_one && !matches!(target.subresource.as_deref(), Some("binding" | "finalize")) => {
            Ok("patch")
        }
        Method::DELETE if is_one => Ok("delete"),
        Method::DELETE if target.namespace.is_some() || !target.row.namespaced => Ok("deletecollection"),
        _ => Err(ApiError::not_allowed()),
    }
}

#[cfg(test)]
mod tests;
