//! The admin port: /healthz, /readyz, /metrics, and /status for `walgate status`.

use std::net::SocketAddr;
use std::sync::OnceLock;
use std::time::Duration;

use axum::extract::State as Shared;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::net::TcpListener;

use crate::pipeline::status::{PipelineStatus, SharedStatus, State};

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

/// Serves until aborted; without `listen` only the metrics' recorder is there.
pub fn start(listen: Option<SocketAddr>, pipelines: Vec<SharedStatus>) -> tokio::task::JoinHandle<()> {
    let recorder = recorder();
    tokio::spawn(async move {
        let Some(listen) = listen else { return };
        let listener = bind(listen).await;
        if let Ok(address) = listener.local_addr() {
            tracing::info!(%address, "admin port");
        }
        let app = Router::new()
            .route("/healthz", get(|| async { "ok\n" }))
            .route("/readyz", get(ready))
            .route("/status", get(status))
            .route("/metrics", get(move || async move { recorder.render() }))
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

async fn ready(Shared(pipelines): Shared<Vec<SharedStatus>>) -> (StatusCode, String) {
    let not_ready: Vec<String> = pipelines
        .iter()
        .map(SharedStatus::read)
        .filter(|status| !matches!(status.state, State::Streaming | State::Snapshot))
        .map(|status| format!("{}: {:?}\n", status.pipeline, status.state))
        .collect();
    match not_ready.is_empty() {
        true => (StatusCode::OK, "ready\n".to_owned()),
        false => (StatusCode::SERVICE_UNAVAILABLE, not_ready.concat()),
    }
}

async fn status(Shared(pipelines): Shared<Vec<SharedStatus>>) -> Json<Vec<PipelineStatus>> {
    Json(pipelines.iter().map(SharedStatus::read).collect())
}
