//! What runs in a container, and when.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{ConfigMap, Event, Pod, Secret};
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use serde_json::json;

use crate::support::{Lab, eventually, is_ready, shell_pod, web_pod};

pub(crate) async fn an_instantly_ready_pod_is_ready_within_a_second(lab: &Lab) {
    lab.create(shell_pod("instant", "sleep 1000")).await;
    let pod = lab.until_ready("instant").await;
    let status = pod.status.unwrap();
    assert_eq!(status.phase.as_deref(), Some("Running"));
    assert!(status.pod_ip.unwrap().starts_with("10.244."));
    let created = pod.metadata.creation_timestamp.unwrap().0;
    let ready = status
        .conditions
        .unwrap()
        .into_iter()
        .find(|c| c.type_ == "Ready")
        .unwrap();
    let took = ready
        .last_transition_time
        .unwrap()
        .0
        .duration_since(created);
    // Many pods start at the same time here, on a machine that is doing other things; alone it is a tenth of a second.
    assert!(took.as_secs() <= 10, "took {took}");
}

pub(crate) async fn init_containers_run_in_order_and_share_volumes(lab: &Lab) {
    let mount = json!([{"name": "shared", "mountPath": "/shared"}]);
    let init = |name: &str| {
        json!({"name": name, "image": "bash", "volumeMounts": mount,
               "command": ["bash", "-c", format!("echo {name} >> /shared/order")]})
    };
    let mut pod = shell_pod("init", "sleep 1000");
    pod["spec"]["initContainers"] = json!([init("one"), init("two")]);
    pod["spec"]["containers"][0]["volumeMounts"] = mount.clone();
    pod["spec"]["volumes"] = json!([{"name": "shared", "emptyDir": {"medium": "Memory"}}]);
    lab.create(pod).await;
    let pod = lab.until_ready("init").await;
    assert_eq!(
        lab.exec("init", &["cat", "/shared/order"]).await,
        "one\ntwo\n"
    );
    let statuses = pod.status.unwrap().init_container_statuses.unwrap();
    assert!(statuses.iter().all(|s| {
        s.ready
            && s.state
                .as_ref()
                .unwrap()
                .terminated
                .as_ref()
                .unwrap()
                .exit_code
                == 0
    }));
}

pub(crate) async fn volumes_show_objects_and_follow_changes(lab: &Lab) {
    let map: ConfigMap = serde_json::from_value(
        json!({"metadata": {"name": "settings"}, "data": {"a": "1", "b": "2"}}),
    )
    .unwrap();
    lab.api::<ConfigMap>()
        .create(&PostParams::default(), &map)
        .await
        .unwrap();
    let secret: Secret = serde_json::from_value(
        json!({"metadata": {"name": "keys"}, "stringData": {"key": "s3cret"}}),
    )
    .unwrap();
    let mut pod = shell_pod("volumes", "sleep 1000");
    pod["spec"]["volumes"] = json!([
        {"name": "map", "configMap": {"name": "settings"}},
        {"name": "one", "configMap": {"name": "settings", "items": [{"key": "b", "path": "sub/b"}]}},
        {"name": "missing", "secret": {"secretName": "not-there", "optional": true}},
        {"name": "keys", "secret": {"secretName": "keys", "defaultMode": 256}},
        {"name": "about", "downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
        {"name": "token", "projected": {"sources": [
            {"serviceAccountToken": {"path": "token", "audience": "istio-ca", "expirationSeconds": 43200}}]}},
    ]);
    pod["spec"]["containers"][0]["volumeMounts"] = json!([
        {"name": "map", "mountPath": "/etc/settings"},
        {"name": "map", "mountPath": "/usr/share/inside/a", "subPath": "a"},
        {"name": "one", "mountPath": "/one"},
        {"name": "missing", "mountPath": "/missing"},
        {"name": "keys", "mountPath": "/keys"},
        {"name": "about", "mountPath": "/about"},
        {"name": "token", "mountPath": "/var/run/secrets/tokens"},
    ]);
    lab.create(pod).await;
    // Not optional and not there: the pod waits and says for what.
    let events = lab.api::<Event>();
    eventually("a FailedMount event", || async {
        let list = events.list(&ListParams::default()).await.unwrap();
        list.items.into_iter().find(|e| {
            e.reason.as_deref() == Some("FailedMount")
                && e.message
                    .as_deref()
                    .unwrap()
                    .contains("secret \"keys\" not found")
        })
    })
    .await;
    lab.api::<Secret>()
        .create(&PostParams::default(), &secret)
        .await
        .unwrap();
    lab.until_ready("volumes").await;
    let cat = |path: &'static str| async move { lab.exec("volumes", &["bash", "-c", path]).await };
    assert_eq!(
        cat("cat /etc/settings/a /usr/share/inside/a /one/sub/b; ls /one /missing").await,
        "112/missing:\n\n/one:\nsub\n"
    );
    assert_eq!(
        cat("cat /keys/key; stat -Lc %a /keys/key").await,
        "s3cret400\n"
    );
    assert_eq!(cat("cat /about/labels").await, "app=\"volumes\"");
    assert_eq!(
        cat("cut -d. -f1 /var/run/secrets/tokens/token | base64 -d 2>/dev/null | grep -c RS256")
            .await,
        "1\n"
    );
    assert_eq!(cat("readlink /etc/settings/a").await, "..data/a\n");
    assert_eq!(
        cat("touch /etc/settings/x 2>&1 | grep -c Read-only").await,
        "1\n"
    );

    lab.api::<ConfigMap>()
        .patch(
            "settings",
            &PatchParams::default(),
            &Patch::Merge(json!({"data": {"a": "changed"}})),
        )
        .await
        .unwrap();
    let began = Instant::now();
    eventually("the changed file", || async {
        (cat("cat /etc/settings/a").await == "changed").then_some(())
    })
    .await;
    assert!(began.elapsed() < Duration::from_secs(10));
}

pub(crate) async fn environment_comes_from_everywhere(lab: &Lab) {
    let map: ConfigMap =
        serde_json::from_value(json!({"metadata": {"name": "env"}, "data": {"FROM_MAP": "m"}}))
            .unwrap();
    lab.api::<ConfigMap>()
        .create(&PostParams::default(), &map)
        .await
        .unwrap();
    let mut pod = shell_pod("env", "echo \"$1\" && sleep 1000");
    let container = &mut pod["spec"]["containers"][0];
    container["args"] = json!(["x", "$(NAME)-$(UNKNOWN)"]);
    container["envFrom"] = json!([{"configMapRef": {"name": "env"}, "prefix": "P_"}]);
    container["env"] = json!([
        {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "KEY", "valueFrom": {"configMapKeyRef": {"name": "env", "key": "FROM_MAP"}}},
        {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "requests.cpu", "divisor": "1m"}}},
        {"name": "BOTH", "value": "$(NAME)/$(KEY)"},
    ]);
    container["resources"] = json!({"requests": {"cpu": "250m"}});
    container["securityContext"] =
        json!({"runAsUser": 1337, "runAsGroup": 1337, "readOnlyRootFilesystem": true});
    lab.create(pod).await;
    let pod = lab.until_ready("env").await;
    let text = lab.exec("env", &["bash", "-c", "echo $P_FROM_MAP $NAME $IP $KEY $CPU $BOTH $KUBERNETES_SERVICE_HOST $(id -u) $(id -g) $(hostname)"]).await;
    let ip = pod.status.unwrap().pod_ip.unwrap();
    assert_eq!(
        text,
        format!("m env {ip} m 250 env/m 10.96.0.1 1337 1337 env\n")
    );
    let log = lab
        .api::<Pod>()
        .logs("env", &Default::default())
        .await
        .unwrap();
    assert_eq!(log, "env-$(UNKNOWN)\n");
    assert_eq!(
        lab.exec("env", &["bash", "-c", "touch /x 2>&1 | grep -c Read-only"])
            .await,
        "1\n"
    );
}

pub(crate) async fn a_finished_pod_tells_how_it_ended(lab: &Lab) {
    let mut pod = shell_pod("failing", "echo last words > /dev/termination-log; exit 3");
    pod["spec"]["restartPolicy"] = json!("Never");
    lab.create(pod).await;
    let pod = lab
        .until("failing", "failing", |pod| {
            pod.status.as_ref().unwrap().phase.as_deref() == Some("Failed")
        })
        .await;
    let ended = pod.status.unwrap().container_statuses.unwrap()[0]
        .state
        .clone()
        .unwrap()
        .terminated
        .unwrap();
    assert_eq!(
        (
            ended.exit_code,
            ended.reason.as_deref(),
            ended.message.as_deref()
        ),
        (3, Some("Error"), Some("last words\n"))
    );

    let mut pod = shell_pod("succeeding", "true");
    pod["spec"]["restartPolicy"] = json!("OnFailure");
    lab.create(pod).await;
    let pod = lab
        .until("succeeding", "succeeding", |pod| {
            pod.status.as_ref().unwrap().phase.as_deref() == Some("Succeeded")
        })
        .await;
    assert!(!is_ready(&pod));
}

pub(crate) async fn an_unknown_image_is_refused_with_what_is_accepted(lab: &Lab) {
    let mut pod = shell_pod("image", "true");
    pod["spec"]["containers"][0]["image"] = json!("example.com/no-such-program:1");
    lab.create(pod).await;
    let waiting = |pod: &Pod| {
        pod.status.as_ref()?.container_statuses.as_ref()?[0]
            .state
            .as_ref()?
            .waiting
            .clone()
    };
    let pod = lab
        .until("image", "ErrImagePull", |pod| {
            waiting(pod).is_some_and(|w| w.reason.as_deref() == Some("ErrImagePull"))
        })
        .await;
    let message = waiting(&pod).unwrap().message.unwrap();
    assert!(
        message.contains("no-such-program") && message.contains("proxyv2"),
        "{message}"
    );
    lab.until("image", "ImagePullBackOff", |pod| {
        waiting(pod).is_some_and(|w| w.reason.as_deref() == Some("ImagePullBackOff"))
    })
    .await;
    lab.delete("image", 30).await;
    lab.until_gone("image").await;
}

pub(crate) async fn a_killed_process_restarts_at_once_then_with_back_off(lab: &Lab) {
    lab.create(shell_pod("killed", "sleep 98765")).await;
    lab.until_ready("killed").await;
    for restarts in 1..=2 {
        kill_process(&format!("{restarts}"), "killed").await;
        if restarts == 1 {
            let pod = lab
                .until("killed", "restarting", |pod| {
                    is_ready(pod) && restart_count(pod) == 1
                })
                .await;
            let last = pod.status.unwrap().container_statuses.unwrap()[0]
                .last_state
                .clone()
                .unwrap()
                .terminated
                .unwrap();
            assert_eq!(
                (last.exit_code, last.reason.as_deref()),
                (137, Some("Error"))
            );
        }
    }
    let pod = lab
        .until("killed", "backing off", |pod| {
            let status = &pod
                .status
                .as_ref()
                .unwrap()
                .container_statuses
                .as_ref()
                .unwrap()[0];
            status
                .state
                .as_ref()
                .unwrap()
                .waiting
                .as_ref()
                .is_some_and(|w| w.reason.as_deref() == Some("CrashLoopBackOff"))
        })
        .await;
    let status = pod.status.unwrap();
    assert_eq!(status.phase.as_deref(), Some("Running"));
    let message = status.container_statuses.unwrap()[0]
        .state
        .clone()
        .unwrap()
        .waiting
        .unwrap()
        .message
        .unwrap();
    assert!(
        message.starts_with("back-off 10s restarting failed container=c pod=killed_default("),
        "{message}"
    );
}

/// kill -9 from the host, as an operator would.
async fn kill_process(round: &str, hostname: &str) {
    let pid = eventually(&format!("the process to kill, round {round}"), || async {
        find_process(hostname)
    })
    .await;
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(pid),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
}

/// The first process whose environment names the pod and whose command line is the pod's.
fn find_process(hostname: &str) -> Option<i32> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries.into_iter().find_map(|entry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
        let environment = std::fs::read_to_string(format!("/proc/{pid}/environ")).ok()?;
        let ours = environment
            .split('\0')
            .any(|variable| variable == format!("HOSTNAME={hostname}"));
        (ours && command.contains("98765")).then_some(pid)
    })
}

fn restart_count(pod: &Pod) -> i32 {
    pod.status
        .as_ref()
        .and_then(|s| s.container_statuses.as_ref())
        .map_or(0, |statuses| statuses[0].restart_count)
}

pub(crate) async fn probes_decide_on_readiness_and_life(lab: &Lab) {
    let mut pod = web_pod("probed", "probed");
    let container = &mut pod["spec"]["containers"][0];
    container["readinessProbe"] = json!({"exec": {"command": ["test", "-e", "/tmp/ready"]}, "periodSeconds": 1, "failureThreshold": 1});
    container["livenessProbe"] = json!({"httpGet": {"path": "/index.html", "port": 8080}, "periodSeconds": 1, "failureThreshold": 2});
    container["startupProbe"] =
        json!({"tcpSocket": {"port": "http"}, "periodSeconds": 1, "failureThreshold": 30});
    lab.create(pod).await;
    lab.until("probed", "starting", |pod| {
        pod.status
            .as_ref()
            .and_then(|s| s.container_statuses.as_ref())
            .is_some_and(|s| s[0].started == Some(true))
    })
    .await;
    assert!(!is_ready(&lab.pod("probed").await));
    lab.exec("probed", &["touch", "/tmp/ready"]).await;
    lab.until_ready("probed").await;
    lab.exec("probed", &["rm", "/tmp/ready"]).await;
    lab.until("probed", "becoming unready", |pod| !is_ready(pod))
        .await;
    lab.exec("probed", &["rm", "/tmp/index.html"]).await;
    lab.until("probed", "being restarted", |pod| restart_count(pod) == 1)
        .await;
    let events = lab
        .api::<Event>()
        .list(&ListParams::default().fields("involvedObject.name=probed"))
        .await
        .unwrap();
    let messages: Vec<_> = events
        .items
        .iter()
        .filter_map(|event| event.message.clone())
        .collect();
    assert!(
        messages
            .iter()
            .any(|m| m == "Container c failed liveness probe, will be restarted"),
        "{messages:?}"
    );
    assert!(messages.iter().any(|m| m.starts_with("Liveness probe failed: HTTP probe failed with statuscode: 404")), "{messages:?}");
}

pub(crate) async fn deletion_runs_the_hook_and_waits_for_the_process(lab: &Lab) {
    let dir = tempfile::tempdir().unwrap();
    let mut pod = shell_pod(
        "graceful",
        "trap 'echo term >> /out/log; exit 0' TERM; while true; do sleep 0.05; done",
    );
    pod["spec"]["volumes"] =
        json!([{"name": "out", "hostPath": {"path": dir.path(), "type": "Directory"}}]);
    let container = &mut pod["spec"]["containers"][0];
    container["volumeMounts"] = json!([{"name": "out", "mountPath": "/out"}]);
    container["lifecycle"] = json!({
        "postStart": {"exec": {"command": ["bash", "-c", "echo start >> /out/log"]}},
        "preStop": {"exec": {"command": ["bash", "-c", "echo stop >> /out/log"]}}
    });
    lab.create(pod).await;
    lab.until_ready("graceful").await;
    let log = dir.path().join("log");
    eventually("the postStart hook", || async {
        log.exists().then_some(())
    })
    .await;
    let began = Instant::now();
    lab.delete("graceful", 20).await;
    lab.until_gone("graceful").await;
    assert!(began.elapsed() < Duration::from_secs(15));
    assert_eq!(std::fs::read_to_string(log).unwrap(), "start\nstop\nterm\n");

    // Deaf to SIGTERM: killed when the grace period is over.
    lab.create(shell_pod(
        "deaf",
        "trap '' TERM; while true; do sleep 0.05; done",
    ))
    .await;
    lab.until_ready("deaf").await;
    let began = Instant::now();
    lab.delete("deaf", 2).await;
    lab.until_gone("deaf").await;
    let took = began.elapsed();
    assert!(
        took >= Duration::from_secs(1) && took < Duration::from_secs(15),
        "took {took:?}"
    );
}
