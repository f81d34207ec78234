//! The admin port: /healthz, /readyz, /metrics, and /status for `walgate status`.

use std::net::SocketAddr;
use std::sync::OnceLock;
use std::time::Duration;

use axum::extract::State as Shared;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::net::TcpListener;

use super::metrics;
use crate::pipeline::status::{PipelineStatus, SharedStatus, State};

type Answer = (StatusCode, String);

/// A port that another process holds (a standby on one machine) is tried again this often.
const BIND_TIME: Duration = Duration::from_secs(5);

static RECORDER: OnceLock<PrometheusHandle> = OnceLock::new();

fn recorder() -> PrometheusHandle {
    RECORDER
        .get_or_init(|| {
            PrometheusBuilder::new().install_recorder().expect("one recorder is installed per process, here")
        })
        .clone()
}

/// Serves until aborted; without `listen` only the metrics' recorder is there. From its return on,
/// metrics are recorded.
pub fn start(listen: Option<SocketAddr>, pipelines: Vec<SharedStatus>) -> tokio::task::JoinHandle<()> {
    let recorder = recorder();
    metrics::describe();
    for pipeline in &pipelines {
        metrics::register(&pipeline.read().pipeline);
    }
    tokio::spawn(async move {
        let Some(listen) = listen else { return };
        let listener = bind(listen).await;
        if let Ok(address) = listener.local_addr() {
            tracing::info!(%address, "admin port");
        }
        let app = Router::new()
            .route("/healthz", get(healthy))
            .route("/readyz", get(ready))
            .route("/status", get(status))
            .route("/metrics", get(move |pipelines| async move { scrape(pipelines, &recorder) }))
            .with_state(pipelines);
        if let Err(error) = axum::serve(listener, app).await {
            tracing::error!(%error, "the admin port has ended");
        }
    })
}

async fn bind(listen: SocketAddr) -> TcpListener {
    let mut is_told = false;
    loop {
        match TcpListener::bind(listen).await {
            Ok(listener) => return listener,
            Err(error) => {
                if !is_told {
                    tracing::warn!(%listen, %error, "the admin port is not to be had; trying on. Set admin.listen to another port, to port 0, or to \"off\"");
                }
                is_told = true;
                tokio::time::sleep(BIND_TIME).await;
            }
        }
    }
}

/// 200 unless a pipeline has ended for good: then a restart by whoever watches is of use.
async fn healthy(Shared(pipelines): Shared<Vec<SharedStatus>>) -> Answer {
    answer(&pipelines, "ok\n", |state| state != State::Stopped)
}

/// 200 while every pipeline delivers.
async fn ready(Shared(pipelines): Shared<Vec<SharedStatus>>) -> Answer {
    answer(&pipelines, "ready\n", State::is_delivering)
}

fn answer(pipelines: &[SharedStatus], good: &str, is_good: impl Fn(State) -> bool) -> Answer {
    let others: Vec<String> = pipelines
        .iter()
        .map(SharedStatus::read)
        .filter(|status| !is_good(status.state))
        .map(|status| format!("{}: {}\n", status.pipeline, status.state))
        .collect();
    match others.is_empty() {
        true => (StatusCode::OK, good.to_owned()),
        false => (StatusCode::SERVICE_UNAVAILABLE, others.concat()),
    }
}

/// The gauges as they are at this moment, in Prometheus' text format 0.0.4.
fn scrape(
    Shared(pipelines): Shared<Vec<SharedStatus>>,
    recorder: &PrometheusHandle,
) -> impl IntoResponse + use<> {
    for pipeline in &pipelines {
        metrics::publish(&pipeline.read());
    }
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], recorder.render())
}

async fn status(Shared(pipelines): Shared<Vec<SharedStatus>>) -> Json<Vec<PipelineStatus>> {
    Json(pipelines.iter().map(SharedStatus::read).collect())
}
