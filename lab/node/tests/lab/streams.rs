//! logs, exec, port-forward.

use futures::AsyncBufReadExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{AttachParams, LogParams};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::{Lab, shell_pod, web_pod};

pub(crate) async fn logs_follow_and_tail(lab: &Lab) {
    lab.create(shell_pod(
        "talker",
        "for i in 1 2 3; do echo line $i; done; read < <(sleep 1); echo late; sleep 1000",
    ))
    .await;
    lab.until_ready("talker").await;
    let follow = LogParams {
        follow: true,
        ..Default::default()
    };
    let mut lines = lab
        .api::<Pod>()
        .log_stream("talker", &follow)
        .await
        .unwrap()
        .lines();
    for expected in ["line 1", "line 2", "line 3", "late"] {
        let line = futures::TryStreamExt::try_next(&mut lines)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(line, expected);
    }
    let tail = LogParams {
        tail_lines: Some(1),
        ..Default::default()
    };
    assert_eq!(
        lab.api::<Pod>().logs("talker", &tail).await.unwrap(),
        "late\n"
    );
    let previous = LogParams {
        previous: true,
        ..Default::default()
    };
    let error = lab
        .api::<Pod>()
        .logs("talker", &previous)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("previous terminated container \"c\" in pod \"talker\" not found"),
        "{error}"
    );
    // The end of the container ends the stream.
    lab.delete("talker", 0).await;
    assert_eq!(
        futures::TryStreamExt::try_next(&mut lines).await.unwrap(),
        None
    );
}

pub(crate) async fn exec_runs_in_the_container(lab: &Lab) {
    lab.create(shell_pod("shell", "sleep 1000")).await;
    lab.until_ready("shell").await;
    assert_eq!(lab.exec("shell", &["hostname"]).await, "shell\n");
    // PID 1 is the container's own process.
    assert_eq!(lab.exec("shell", &["cat", "/proc/1/comm"]).await, "sleep\n");

    let pods = lab.api::<Pod>();
    let params = AttachParams::default()
        .stdin(true)
        .stdout(true)
        .stderr(true);
    let mut process = pods
        .exec(
            "shell",
            ["bash", "-c", "cat; echo err >&2; exit 3"],
            &params,
        )
        .await
        .unwrap();
    let status = process.take_status().unwrap();
    let mut stdin = process.stdin().unwrap();
    stdin.write_all(b"through\n").await.unwrap();
    stdin.shutdown().await.unwrap();
    drop(stdin);
    let (mut out, mut err) = (String::new(), String::new());
    process
        .stdout()
        .unwrap()
        .read_to_string(&mut out)
        .await
        .unwrap();
    process
        .stderr()
        .unwrap()
        .read_to_string(&mut err)
        .await
        .unwrap();
    assert_eq!((out.as_str(), err.as_str()), ("through\n", "err\n"));
    let status = status.await.unwrap();
    assert_eq!(status.reason.as_deref(), Some("NonZeroExitCode"));

    let terminal = AttachParams::interactive_tty();
    let mut process = pods
        .exec(
            "shell",
            ["bash", "-c", "test -t 0 && stty size; tty; echo done"],
            &terminal,
        )
        .await
        .unwrap();
    let mut out = String::new();
    process
        .stdout()
        .unwrap()
        .read_to_string(&mut out)
        .await
        .unwrap();
    assert!(out.contains("/dev/pts/0\r\ndone\r\n"), "{out:?}");
}

pub(crate) async fn port_forward_reaches_loopback_of_the_pod(lab: &Lab) {
    lab.create(web_pod("forwarded", "forwarded")).await;
    lab.until_ready("forwarded").await;
    let mut forwarder = lab
        .api::<Pod>()
        .portforward("forwarded", &[8080])
        .await
        .unwrap();
    let mut stream = forwarder.take_stream(8080).unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert!(text.ends_with("forwarded\n"), "{text}");
}
