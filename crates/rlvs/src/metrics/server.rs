//! Metrics over HTTP: `/metrics` and `/healthz`, to whoever may connect.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::TcpListener as StdListener;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::reading::Reading;
use super::render;
use crate::ipvsadm::Backend;
use crate::keepalived::daemon::state::State;

/// How long a client may take for its request, and then for each further one.
const HEADER_MAX: Duration = Duration::from_secs(10);
/// How long a connection may last.
const CONNECTION_MAX: Duration = Duration::from_secs(300);
/// Connections at once; others wait.
const CONNECTIONS_MAX: usize = 16;
/// A pause where the system has no descriptors left.
const PAUSE: Duration = Duration::from_millis(100);

/// The daemon's state, when it comes.
pub(crate) type Asked = Pin<Box<dyn Future<Output = Option<Arc<State>>> + Send>>;

/// What is scraped.
pub(crate) struct Source {
    /// Whose table.
    pub(crate) backend: Backend,
    /// Asks the daemon.
    pub(crate) daemon: Box<dyn Fn() -> Asked + Send + Sync>,
}

/// Serves on the current runtime for ever.
///
/// # Errors
/// The listener is of no use.
pub(crate) async fn serve(listener: StdListener, source: Arc<Source>) -> io::Result<Infallible> {
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let place = room.clone().acquire_owned().await.map_err(io::Error::other)?;
        let Ok((client, _)) = listener.accept().await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let source = source.clone();
        tokio::spawn(async move {
            // Whoever takes longer, or breaks off, comes again.
            timeout(CONNECTION_MAX, connection(client, source)).await.ok();
            drop(place);
        });
    }
}

async fn connection(client: TcpStream, source: Arc<Source>) -> hyper::Result<()> {
    let service = service_fn(move |request| {
        let source = source.clone();
        async move { Ok::<_, Infallible>(answer(&request, &source).await) }
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEADER_MAX);
    server.serve_connection(TokioIo::new(client), service).await
}

async fn answer(request: &Request<Incoming>, source: &Source) -> Response<Full<Bytes>> {
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        let mut refusal = text(StatusCode::METHOD_NOT_ALLOWED, "GET and HEAD are understood\n");
        refusal.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refusal;
    }
    match request.uri().path() {
        "/metrics" => {
            let daemon = (source.daemon)().await;
            let reading = Reading::take(source.backend, daemon);
            let mut metrics = text(StatusCode::OK, render(&reading));
            let version = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
            metrics.headers_mut().insert(CONTENT_TYPE, version);
            metrics
        }
        "/healthz" => text(StatusCode::OK, "ok\n"),
        "/" => text(StatusCode::OK, "rlvs: /metrics for Prometheus, /healthz\n"),
        _ => text(StatusCode::NOT_FOUND, "there is /metrics and /healthz\n"),
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    response
}
