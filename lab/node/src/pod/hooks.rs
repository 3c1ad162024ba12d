//! Lifecycle hooks: postStart and preStop.

use std::{net::Ipv4Addr, time::Duration};

use k8s_openapi::api::core::v1::{Container, LifecycleHandler};

use super::http;
use crate::container::runtime::Running;

/// Runs a hook to its end. `Err` holds what to tell the user.
pub(crate) async fn run(
    handler: &LifecycleHandler,
    container: &Container,
    running: &Running,
    ip: Ipv4Addr,
    limit: Duration,
) -> Result<(), String> {
    let attempt = async {
        if let Some(exec) = &handler.exec {
            running
                .run(exec.command.clone().unwrap_or_default(), limit)
                .await
        } else if let Some(action) = &handler.http_get {
            http::get(container, ip, action).await
        } else if let Some(sleep) = &handler.sleep {
            tokio::time::sleep(Duration::from_secs(
                u64::try_from(sleep.seconds).unwrap_or(0),
            ))
            .await;
            Ok(())
        } else {
            Err("a hook needs one of exec, httpGet, sleep".to_owned())
        }
    };
    match tokio::time::timeout(limit, attempt).await {
        Ok(result) => result,
        Err(_) => Err(format!("not finished after {}s", limit.as_secs())),
    }
}
