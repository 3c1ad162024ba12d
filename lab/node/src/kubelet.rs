//! The node's side of `kubectl logs`, `exec`, `port-forward` and `top`.

mod exec;
mod logs;
mod usage;

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use lab_kubernetes::{
    AsyncReadWrite, ExecOptions, ExecSession, Kubelet, KubeletError, LogOptions, PodUsage,
};

use crate::{
    container::runtime::Running,
    lab::host,
    pod::{
        Context,
        table::{ContainerView, PodView},
    },
};

pub(crate) use usage::Sampler;

/// Answers the API server from the pod table.
#[derive(Debug)]
pub(crate) struct NodeKubelet {
    pub(crate) context: Arc<Context>,
    pub(crate) usage: Arc<Sampler>,
}

impl NodeKubelet {
    fn pod(&self, namespace: &str, pod: &str) -> Result<Arc<PodView>, KubeletError> {
        self.context
            .table
            .get(namespace, pod)
            .ok_or_else(|| KubeletError::NotFound(format!("pod \"{pod}\" is not on this node")))
    }
}

/// The named container, or the only one there is a choice of.
fn container<'a>(pod: &'a PodView, name: Option<&str>) -> Result<&'a ContainerView, KubeletError> {
    let found = match name {
        Some(name) => pod
            .containers
            .iter()
            .find(|container| container.name == name),
        None => pod.containers.last().filter(|_| pod.containers.len() == 1),
    };
    found.ok_or_else(|| match name {
        Some(name) => KubeletError::BadRequest(format!(
            "container {name} is not valid for pod {}",
            pod.name
        )),
        None => {
            let names: Vec<_> = pod
                .containers
                .iter()
                .map(|container| container.name.as_str())
                .collect();
            KubeletError::BadRequest(format!(
                "a container name must be specified for pod {}, choose one of: [{}]",
                pod.name,
                names.join(" ")
            ))
        }
    })
}

fn running<'a>(pod: &PodView, container: &'a ContainerView) -> Result<&'a Running, KubeletError> {
    container.running.as_ref().ok_or_else(|| {
        KubeletError::BadRequest(format!(
            "container \"{}\" in pod \"{}\" is not running",
            container.name, pod.name
        ))
    })
}

#[async_trait]
impl Kubelet for NodeKubelet {
    async fn logs(
        &self,
        namespace: &str,
        pod: &str,
        options: LogOptions,
    ) -> Result<BoxStream<'static, Result<Bytes, KubeletError>>, KubeletError> {
        let pod = self.pod(namespace, pod)?;
        let container = container(&pod, options.container.as_deref())?;
        logs::stream(&self.context.state, &pod, container, &options)
    }

    async fn exec(
        &self,
        namespace: &str,
        pod: &str,
        options: ExecOptions,
    ) -> Result<ExecSession, KubeletError> {
        let pod = self.pod(namespace, pod)?;
        let container = container(&pod, options.container.as_deref())?;
        exec::start(running(&pod, container)?, options)
            .map_err(|error| KubeletError::Internal(format!("{error:#}")))
    }

    async fn port_forward(
        &self,
        namespace: &str,
        pod: &str,
        port: u16,
    ) -> Result<Box<dyn AsyncReadWrite>, KubeletError> {
        let pod = self.pod(namespace, pod)?;
        let sandbox = pod.sandbox.as_ref().ok_or_else(|| {
            KubeletError::BadRequest(format!("pod \"{}\" is not running", pod.name))
        })?;
        let failed = |error: std::io::Error| {
            KubeletError::Internal(format!(
                "failed to connect to localhost:{port} inside pod {namespace}/{}: {error}",
                pod.name
            ))
        };
        let net = sandbox.net().map_err(failed)?;
        let stream = host::connect_in(net, ([127, 0, 0, 1], port).into())
            .await
            .map_err(failed)?;
        Ok(Box::new(stream))
    }

    async fn pod_metrics(&self) -> Vec<PodUsage> {
        self.usage.current()
    }
}
