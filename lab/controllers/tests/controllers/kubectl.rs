//! What a user of the real kubectl sees of the controllers' work.

use std::path::PathBuf;

use tokio::net::TcpListener;
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

use crate::lab::{HOLD, Lab};

struct Kubectl {
    lab: Lab,
    config: PathBuf,
    stop: CancellationToken,
}

impl Drop for Kubectl {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

const WEB: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: c
        image: demo
        ports: [{name: http, containerPort: 8080}]
        resources: {requests: {cpu: 100m}}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: http}]}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: web}
spec:
  minReplicas: 2
  maxReplicas: 5
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: web}
  metrics: [{type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 50}}}]
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: web}
spec: {minAvailable: 1, selector: {matchLabels: {app: web}}}
"#;

impl Kubectl {
    async fn start() -> Self {
        let lab = Lab::start().await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let config = lab.dir.path().join("kubeconfig");
        std::fs::write(&config, lab.server.admin_kubeconfig(address)).unwrap();
        std::fs::write(lab.dir.path().join("web.yaml"), WEB).unwrap();
        let stop = CancellationToken::new();
        let (server, until) = (lab.server.clone(), stop.clone());
        tokio::spawn(async move { server.serve(listener, until).await });
        Self { lab, config, stop }
    }

    /// Runs kubectl; it must succeed. Returns what it printed.
    async fn run(&self, args: &str) -> String {
        let home = self.lab.dir.path();
        let output = Command::new("kubectl")
            .args(args.split_whitespace())
            .current_dir(home)
            .env("KUBECONFIG", &self.config)
            .env("HOME", home)
            .output()
            .await
            .expect("kubectl is needed for this test: `make setup` installs it");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "kubectl {args}: {}\n{text}{errors}",
            output.status
        );
        text
    }
}

/// The words of the line that begins with `name`.
fn row<'a>(table: &'a str, name: &str) -> Vec<&'a str> {
    let line = table.lines().find(|line| line.starts_with(name));
    line.unwrap_or_else(|| panic!("no row {name} in\n{table}"))
        .split_whitespace()
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollout_as_kubectl_shows_it() {
    let kubectl = Kubectl::start().await;
    kubectl.run("apply -f web.yaml").await;
    let text = kubectl
        .run("rollout status deployment/web --timeout=180s")
        .await;
    assert!(
        text.contains("deployment \"web\" successfully rolled out"),
        "{text}"
    );
    let table = kubectl.run("get deployment web").await;
    assert_eq!(
        row(&table, "NAME"),
        ["NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE"]
    );
    assert_eq!(row(&table, "web")[..4], ["web", "2/2", "2", "2"]);
    let table = kubectl.run("get deployment,replicaset -o wide").await;
    assert!(table.contains("app=web,pod-template-hash="), "{table}");
    let table = kubectl.run("get rs").await;
    assert_eq!(
        row(&table, "NAME"),
        ["NAME", "DESIRED", "CURRENT", "READY", "AGE"]
    );
    assert_eq!(row(&table, "web-")[1..4], ["2", "2", "2"]);
    let table = kubectl.run("get pods -l app=web").await;
    assert_eq!(row(&table, "web-")[1..4], ["1/1", "Running", "0"]);
    let table = kubectl.run("get endpoints web").await;
    assert_eq!(row(&table, "web")[1].matches(":8080").count(), 2, "{table}");
    let table = kubectl.run("get pdb web").await;
    assert_eq!(row(&table, "web")[..4], ["web", "1", "N/A", "1"]);

    kubectl.run("set image deployment/web c=demo2").await;
    kubectl
        .run("rollout status deployment/web --timeout=180s")
        .await;
    let text = kubectl.run("rollout history deployment/web").await;
    assert_eq!(
        text.lines()
            .filter(|l| l.starts_with(|c: char| c.is_ascii_digit()))
            .count(),
        2,
        "{text}"
    );
    kubectl.run("rollout undo deployment/web").await;
    kubectl
        .run("rollout status deployment/web --timeout=180s")
        .await;
    let image = kubectl
        .run("get deployment web -o jsonpath={.spec.template.spec.containers[0].image}")
        .await;
    assert_eq!(image, "demo");
    kubectl.run("rollout restart deployment/web").await;
    kubectl
        .run("rollout status deployment/web --timeout=180s")
        .await;
    let table = kubectl.run("get rs").await;
    assert_eq!(
        table.lines().count(),
        4,
        "three sets, all but one empty:\n{table}"
    );

    let text = kubectl.run("describe deployment web").await;
    for part in [
        "StrategyType:           RollingUpdate",
        "RollingUpdateStrategy:  25% max unavailable, 25% max surge",
        "2 desired | 2 updated | 2 total | 2 available | 0 unavailable",
        "Available      True    MinimumReplicasAvailable",
        "Progressing    True    NewReplicaSetAvailable",
        "NewReplicaSet:",
        "ScalingReplicaSet",
        "deployment-controller",
    ] {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
    let text = kubectl.run("describe pods -l app=web").await;
    assert!(
        text.contains("Controlled By:  ReplicaSet/web-")
            && text.contains("Successfully assigned default/web-"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scaling_waiting_and_deleting() {
    let kubectl = Kubectl::start().await;
    kubectl.run("apply -f web.yaml").await;
    kubectl.run("delete hpa web").await;
    kubectl
        .run("wait --for=condition=Available --timeout=180s deployment/web")
        .await;
    kubectl.run("scale deployment/web --replicas=4").await;
    kubectl
        .run("rollout status deployment/web --timeout=180s")
        .await;
    kubectl
        .run("wait --for=condition=Ready --timeout=180s pod -l app=web")
        .await;
    let names = kubectl.run("get pods -l app=web -o name").await;
    assert_eq!(names.lines().count(), 4, "{names}");
    kubectl
        .run("scale deployment/web --replicas=1 --current-replicas=4")
        .await;
    kubectl
        .run("rollout status deployment/web --timeout=180s")
        .await;
    kubectl
        .lab
        .until::<k8s_openapi::api::core::v1::Pod>("one pod", |all| all.len() == 1)
        .await;

    let patch =
        format!(r#"{{"spec":{{"template":{{"metadata":{{"annotations":{{"{HOLD}":"1"}}}}}}}}}}"#);
    kubectl
        .run(&format!("patch deployment web -p {patch}"))
        .await;
    let pods = kubectl
        .lab
        .until::<k8s_openapi::api::core::v1::Pod>("stuck rollout", |all| {
            all.len() == 2
                && all
                    .iter()
                    .all(|p| p.status.as_ref().is_some_and(|s| s.pod_ip.is_some()))
        });
    pods.await;
    let table = kubectl.run("get pods -l app=web").await;
    assert_eq!(table.matches("0/1").count(), 1, "{table}");
    kubectl.run("rollout undo deployment/web").await;
    kubectl
        .run("rollout status deployment/web --timeout=180s")
        .await;

    kubectl.run("delete deployment web --timeout=180s").await;
    kubectl
        .lab
        .until::<k8s_openapi::api::core::v1::Pod>("no pods", |all| all.is_empty())
        .await;
    kubectl.run("create namespace other").await;
    kubectl.run("apply -n other -f web.yaml").await;
    kubectl
        .run("wait -n other --for=condition=Available --timeout=180s deployment/web")
        .await;
    let text = kubectl.run("delete namespace other --timeout=180s").await;
    assert!(text.contains("namespace \"other\" deleted"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_autoscaler_as_kubectl_shows_it() {
    use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
    use k8s_openapi::api::core::v1::Pod;
    let kubectl = Kubectl::start().await;
    kubectl.run("apply -f web.yaml").await;
    kubectl
        .run("rollout status deployment/web --timeout=180s")
        .await;
    kubectl
        .lab
        .usage
        .set(&kubectl.lab.list::<Pod>().await, 50_000_000);
    kubectl
        .lab
        .until::<HorizontalPodAutoscaler>("measured", |all| {
            all.iter().any(|h| {
                h.status
                    .as_ref()
                    .is_some_and(|s| s.current_metrics.is_some())
            })
        })
        .await;
    let table = kubectl.run("get hpa web").await;
    assert!(table.contains("50%/50%"), "{table}");
    assert!(table.contains("Deployment/web"), "{table}");
    let text = kubectl.run("describe hpa web").await;
    for part in [
        "ScalingActive",
        "ValidMetricFound",
        "AbleToScale",
        "ReadyForNewScale",
    ] {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
}
