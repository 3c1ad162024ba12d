//! `pods/NAME/log`: the node's log of a container as plain text.

use axum::body::Body;
use axum::response::Response;
use futures::StreamExt;
use http::{HeaderValue, header};
use serde_json::Value;

use super::{from_kubelet, kubelet};
use crate::json;
use crate::kubelet::LogOptions;
use crate::rest::{Context, find};
use crate::status::{ApiError, Result};

pub(crate) async fn serve(context: &Context) -> Result<Response> {
    let pod = find(context)?;
    let container = container(&pod.value, context.options.get("container"))?;
    let options = LogOptions {
        container: Some(container.clone()),
        follow: context.options.flag("follow"),
        previous: context.options.flag("previous"),
        timestamps: context.options.flag("timestamps"),
        tail_lines: context.options.number("tailLines")?,
        limit_bytes: context.options.number("limitBytes")?,
        since_seconds: context.options.number("sinceSeconds")?,
        since_time: context.options.get("sinceTime").map(str::to_owned),
    };
    started(&pod.value, &pod.name, &container, options.previous)?;
    let stop = context.server.stop.clone();
    let stream = kubelet(context)?
        .logs(&context.namespace, &pod.name, options)
        .await
        .map_err(from_kubelet)?;
    let body = Body::from_stream(stream.take_until(stop.cancelled_owned()));
    let mut response = Response::new(body);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    Ok(response)
}

/// The container meant: the named one, the annotated default, or the only one.
pub(super) fn container(pod: &Value, asked: Option<&str>) -> Result<String> {
    let name = json::str_at(pod, &["metadata", "name"]);
    let names = |key: &str| -> Vec<&str> {
        json::list_at(pod, &["spec", key])
            .iter()
            .map(|c| json::str_at(c, &["name"]))
            .collect()
    };
    let (main, init, ephemeral) = (
        names("containers"),
        names("initContainers"),
        names("ephemeralContainers"),
    );
    match asked {
        Some(asked)
            if main
                .iter()
                .chain(&init)
                .chain(&ephemeral)
                .any(|c| *c == asked) =>
        {
            Ok(asked.to_owned())
        }
        Some(asked) => Err(ApiError::bad_request(format!(
            "container {asked} is not valid for pod {name}"
        ))),
        None => match main.as_slice() {
            [one] => Ok((*one).to_owned()),
            _ => {
                let init = if init.is_empty() {
                    String::new()
                } else {
                    format!(" or one of the init containers: [{}]", init.join(" "))
                };
                Err(ApiError::bad_request(format!(
                    "a container name must be specified for pod {name}, choose one of: [{}]{init}",
                    main.join(" ")
                )))
            }
        },
    }
}

/// A container that has not started has no log, and the reason is in its status.
fn started(pod: &Value, name: &str, container: &str, previous: bool) -> Result<()> {
    let statuses = [
        "containerStatuses",
        "initContainerStatuses",
        "ephemeralContainerStatuses",
    ];
    let status = statuses
        .iter()
        .flat_map(|key| json::list_at(pod, &["status", key]))
        .find(|s| json::str_at(s, &["name"]) == container);
    let reason = match status {
        None if json::str_at(pod, &["spec", "nodeName"]).is_empty() => {
            return Err(ApiError::bad_request(format!(
                "pod {name} does not have a host assigned"
            )));
        }
        None => "ContainerCreating",
        Some(status) => {
            let never = json::at(status, &["lastState", "terminated"]).is_none();
            if previous && never {
                return Err(ApiError::bad_request(format!(
                    "previous terminated container \"{container}\" in pod \"{name}\" not found"
                )));
            }
            match json::str_at(status, &["state", "waiting", "reason"]) {
                "" => return Ok(()),
                _ if !never => return Ok(()),
                reason => reason,
            }
        }
    };
    let waiting = match reason {
        "ErrImagePull"
        | "ImagePullBackOff"
        | "ErrImageNeverPull"
        | "CreateContainerConfigError" => "trying and failing to pull image".to_owned(),
        reason => reason.to_owned(),
    };
    let message =
        format!("container \"{container}\" in pod \"{name}\" is waiting to start: {waiting}");
    Err(ApiError::bad_request(message))
}
