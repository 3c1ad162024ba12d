//! Logs, exec and port-forward against a node made of plain streams.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{AsyncReadExt as _, StreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{AttachParams, LogParams};
use lab_kubernetes::{
    AsyncReadWrite, ContainerUsage, ExecOptions, ExecSession, ExitStatus, Kubelet, KubeletError,
    LogOptions, PodUsage,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::sync::oneshot;

use crate::harness::Lab;

/// `exec` runs two words: `cat` echoes standard input, `exit N` ends with N.
struct Node;

#[async_trait]
impl Kubelet for Node {
    async fn logs(
        &self,
        _: &str,
        pod: &str,
        options: LogOptions,
    ) -> Result<BoxStream<'static, Result<Bytes, KubeletError>>, KubeletError> {
        let line = format!(
            "log of {pod}/{} tail {:?}\n",
            options.container.unwrap_or_default(),
            options.tail_lines
        );
        Ok(stream::iter([Ok(Bytes::from(line))]).boxed())
    }

    async fn exec(
        &self,
        _: &str,
        _: &str,
        options: ExecOptions,
    ) -> Result<ExecSession, KubeletError> {
        let (stdin, mut input) = duplex(1024);
        let (mut output, stdout) = duplex(1024);
        let (mut errors, stderr) = duplex(1024);
        let (done, status) = oneshot::channel();
        tokio::spawn(async move {
            let code = match options.command[0].as_str() {
                "cat" => {
                    tokio::io::copy(&mut input, &mut output).await.unwrap();
                    0
                }
                "exit" => {
                    errors.write_all(b"bye\n").await.unwrap();
                    options.command[1].parse().unwrap()
                }
                other => panic!("{other}"),
            };
            drop((output, errors));
            let _ = done.send(ExitStatus { code });
        });
        Ok(ExecSession {
            stdin: options.stdin.then(|| Box::new(stdin) as _),
            stdout: options.stdout.then(|| Box::new(stdout) as _),
            stderr: options.stderr.then(|| Box::new(stderr) as _),
            resize: None,
            status,
        })
    }

    /// Port 80 answers in capitals; others are closed.
    async fn port_forward(
        &self,
        _: &str,
        _: &str,
        port: u16,
    ) -> Result<Box<dyn AsyncReadWrite>, KubeletError> {
        if port != 80 {
            return Err(KubeletError::Internal("connection refused".to_owned()));
        }
        let (near, mut far) = duplex(1024);
        tokio::spawn(async move {
            let mut buffer = [0; 64];
            while let Ok(n) = far.read(&mut buffer).await {
                if n == 0
                    || far
                        .write_all(&buffer[..n].to_ascii_uppercase())
                        .await
                        .is_err()
                {
                    break;
                }
            }
        });
        Ok(Box::new(near))
    }

    async fn pod_metrics(&self) -> Vec<PodUsage> {
        let containers = vec![ContainerUsage {
            name: "c".into(),
            cpu_nanocores: 5_000_000,
            memory_bytes: 4096,
        }];
        vec![PodUsage {
            namespace: "default".into(),
            name: "p".into(),
            window_seconds: 10,
            containers,
        }]
    }
}

/// A lab with one running pod `p`.
pub(crate) async fn with_pod() -> Lab {
    let lab = Lab::start().await;
    lab.server.set_kubelet(Arc::new(Node));
    lab.default_account().await;
    let pods = "/api/v1/namespaces/default/pods";
    let pod = r#"{"metadata":{"name":"p","labels":{"app":"p"}},"spec":{"nodeName":"node0","containers":[{"name":"c","image":"i"}]}}"#;
    lab.post(pods, pod).await.unwrap();
    let status = r#"{"status":{"phase":"Running","containerStatuses":[{"name":"c","image":"i","imageID":"i","ready":true,"restartCount":0,"state":{"running":{}}}]}}"#;
    lab.merge(&format!("{pods}/p/status"), status)
        .await
        .unwrap();
    lab
}

#[tokio::test]
async fn kube_rs_reads_logs_and_metrics() {
    let lab = with_pod().await;
    let api: Api<Pod> = Api::namespaced(lab.tls_client().await, "default");
    let text = api
        .logs(
            "p",
            &LogParams {
                tail_lines: Some(2),
                ..LogParams::default()
            },
        )
        .await
        .unwrap();
    assert_eq!(text, "log of p/c tail Some(2)\n");
    let previous = api
        .logs(
            "p",
            &LogParams {
                previous: true,
                ..LogParams::default()
            },
        )
        .await
        .unwrap_err();
    assert!(
        previous
            .to_string()
            .contains("previous terminated container \"c\" in pod \"p\" not found"),
        "{previous}"
    );
    let metrics = lab
        .get("/apis/metrics.k8s.io/v1beta1/namespaces/default/pods?labelSelector=app%3Dp")
        .await
        .unwrap();
    assert_eq!(
        metrics["items"][0]["containers"][0]["usage"]["cpu"],
        "5000000n"
    );
}

#[tokio::test]
async fn kube_rs_runs_commands() {
    let lab = with_pod().await;
    let api: Api<Pod> = Api::namespaced(lab.tls_client().await, "default");
    let mut cat = api
        .exec(
            "p",
            ["cat"],
            &AttachParams::default().stdin(true).stderr(false),
        )
        .await
        .unwrap();
    let (mut stdin, mut stdout) = (cat.stdin().unwrap(), cat.stdout().unwrap());
    stdin.write_all(b"hello").await.unwrap();
    stdin.shutdown().await.unwrap();
    drop(stdin);
    let mut text = String::new();
    stdout.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "hello");
    assert_eq!(
        cat.take_status().unwrap().await.unwrap().status.as_deref(),
        Some("Success")
    );
    let mut exit = api
        .exec("p", ["exit", "3"], &AttachParams::default())
        .await
        .unwrap();
    let status = exit.take_status().unwrap().await.unwrap();
    assert_eq!(status.reason.as_deref(), Some("NonZeroExitCode"));
    assert_eq!(
        status.details.unwrap().causes.unwrap()[0]
            .message
            .as_deref(),
        Some("3")
    );
}

#[tokio::test]
async fn kube_rs_forwards_ports() {
    let lab = with_pod().await;
    let api: Api<Pod> = Api::namespaced(lab.tls_client().await, "default");
    let mut forwarder = api.portforward("p", &[80, 81]).await.unwrap();
    let mut stream = forwarder.take_stream(80).unwrap();
    stream.write_all(b"shout").await.unwrap();
    let mut buffer = [0; 5];
    stream.read_exact(&mut buffer).await.unwrap();
    assert_eq!(&buffer, b"SHOUT");
    let why = forwarder.take_error(81).unwrap().await.unwrap();
    assert!(why.contains("connection refused"), "{why}");
}

#[tokio::test]
async fn followed_logs_stream() {
    let lab = with_pod().await;
    let api: Api<Pod> = Api::namespaced(lab.tls_client().await, "default");
    let mut reader = api
        .log_stream(
            "p",
            &LogParams {
                follow: true,
                ..LogParams::default()
            },
        )
        .await
        .unwrap();
    let mut text = String::new();
    reader.read_to_string(&mut text).await.unwrap();
    assert!(text.starts_with("log of p/c"));
}
