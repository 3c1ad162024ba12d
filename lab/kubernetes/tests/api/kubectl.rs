//! Real kubectl, a current one and 1.20: what users type.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;

use crate::harness::Lab;

const MANIFEST: &str = r"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: c, image: 'x:1', ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: cm}
data: {a: b}
";

/// Below this crate: the repository's tool folder.
fn tools() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools")
}

fn current() -> Option<PathBuf> {
    let named = std::env::var_os("KUBECTL").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let local = [tools().join("kubectl/kubectl"), tools().join("kubectl")];
    named
        .into_iter()
        .chain(local)
        .chain(std::env::split_paths(&path).map(|d| d.join("kubectl")))
        .find(|p| p.is_file())
}

fn old() -> Option<PathBuf> {
    let named = std::env::var_os("KUBECTL_1_20").map(PathBuf::from);
    named
        .into_iter()
        .chain([tools().join("kubectl-1.20/usr/bin/kubectl")])
        .find(|p| p.is_file())
}

struct Kubectl<'a> {
    program: PathBuf,
    lab: &'a Lab,
}

impl Kubectl<'_> {
    async fn output(&self, arguments: &[&str]) -> Output {
        Command::new(&self.program)
            .args(arguments)
            .env("KUBECONFIG", self.lab.kubeconfig())
            .env("HOME", self.lab.dir.path())
            .current_dir(self.lab.dir.path())
            .output()
            .await
            .unwrap()
    }

    /// Standard output of a command that must succeed.
    async fn ok(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments).await;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "{arguments:?}: {text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        text
    }

    /// Standard error of a command that must fail.
    async fn fails(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments).await;
        assert!(!output.status.success(), "{arguments:?} succeeded");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }
}

async fn everyday(kubectl: &Kubectl<'_>) {
    let k = kubectl;
    k.lab.default_account().await;
    std::fs::write(k.lab.dir.path().join("m.yaml"), MANIFEST).unwrap();
    let created = k.ok(&["apply", "-f", "m.yaml"]).await;
    assert_eq!(
        created,
        "deployment.apps/web created\nservice/web created\nconfigmap/cm created\n"
    );
    assert_eq!(
        k.ok(&["apply", "-f", "m.yaml"])
            .await
            .matches("unchanged")
            .count(),
        3
    );
    std::fs::write(
        k.lab.dir.path().join("m.yaml"),
        MANIFEST.replace("x:1", "x:2").replace("a: b", "c: d"),
    )
    .unwrap();
    assert_eq!(
        k.ok(&["apply", "-f", "m.yaml"])
            .await
            .matches("configured")
            .count(),
        2
    );
    assert_eq!(
        k.ok(&["get", "cm", "cm", "-o", "jsonpath={.data}"]).await,
        r#"{"c":"d"}"#
    );
    assert!(
        k.ok(&["get", "deploy", "web", "-o", "wide"])
            .await
            .contains("x:2")
    );
    assert!(k.ok(&["get", "deploy,svc"]).await.contains("service/web"));
    assert!(
        k.ok(&["get", "all", "-A"])
            .await
            .contains("service/kubernetes")
    );
    assert!(
        k.ok(&["get", "svc", "-l", "component=apiserver", "-o", "name"])
            .await
            .contains("service/kubernetes")
    );
    k.ok(&["scale", "deploy", "web", "--replicas=5"]).await;
    k.ok(&[
        "scale",
        "deploy",
        "web",
        "--current-replicas=5",
        "--replicas=4",
    ])
    .await;
    assert_eq!(
        k.ok(&["get", "deploy", "web", "-o", "jsonpath={.spec.replicas}"])
            .await,
        "4"
    );
    k.ok(&[
        "patch",
        "deploy",
        "web",
        "-p",
        r#"{"spec":{"template":{"spec":{"containers":[{"name":"c","image":"x:3"}]}}}}"#,
    ])
    .await;
    k.ok(&[
        "patch",
        "cm",
        "cm",
        "--type=json",
        "-p",
        r#"[{"op":"add","path":"/data/e","value":"f"}]"#,
    ])
    .await;
    assert!(
        k.ok(&[
            "patch",
            "cm",
            "cm",
            "--type=merge",
            "-p",
            r#"{"data":{"e":"f"}}"#
        ])
        .await
        .contains("no change")
    );
    k.ok(&["label", "cm", "cm", "a=b"]).await;
    k.ok(&["annotate", "cm", "cm", "a=b"]).await;
    assert!(
        k.fails(&["label", "cm", "cm", "a=c"])
            .await
            .contains("overwrite")
    );
    k.ok(&["rollout", "restart", "deploy/web"]).await;
    k.ok(&["set", "image", "deploy/web", "c=x:4"]).await;
    assert!(k.ok(&["describe", "deploy", "web"]).await.contains("x:4"));
    assert!(k.ok(&["describe", "svc", "web"]).await.contains("app=web"));
    assert!(
        k.ok(&["api-resources"])
            .await
            .contains("horizontalpodautoscalers")
    );
    assert!(k.ok(&["api-versions"]).await.contains("apps/v1"));
    assert!(
        k.ok(&["version", "-o", "json"])
            .await
            .contains("serverVersion")
    );
    k.ok(&[
        "apply",
        "--server-side",
        "--force-conflicts",
        "-f",
        "m.yaml",
    ])
    .await;
    assert_eq!(
        k.ok(&[
            "get",
            "deploy",
            "web",
            "-o",
            "jsonpath={.spec.template.spec.containers[0].image}"
        ])
        .await,
        "x:2"
    );
    let difference = k.output(&["diff", "-f", "m.yaml"]).await;
    assert!(
        matches!(difference.status.code(), Some(0 | 1)),
        "{}",
        String::from_utf8_lossy(&difference.stderr)
    );
    std::fs::write(
        k.lab.dir.path().join("bad.yaml"),
        "kind: Pod\napiVersion: v1\nmetadata: {name: x1}\nspec: {containers: []}\n",
    )
    .unwrap();
    assert!(
        k.fails(&["create", "-f", "bad.yaml"])
            .await
            .contains("The Pod \"x1\" is invalid: spec.containers: Required value")
    );
    assert!(
        k.fails(&["get", "nosuch"])
            .await
            .contains("the server doesn't have a resource type \"nosuch\"")
    );
    assert!(
        k.fails(&["get", "cm", "zz"])
            .await
            .contains("Error from server (NotFound): configmaps \"zz\" not found")
    );
    // Imperative commands: protobuf bodies from a current kubectl.
    k.ok(&["create", "ns", "other"]).await;
    k.ok(&["create", "configmap", "c2", "--from-literal=x=y"])
        .await;
    k.ok(&["create", "secret", "generic", "s2", "--from-literal=x=y"])
        .await;
    assert_eq!(
        k.ok(&["get", "secret", "s2", "-o", "jsonpath={.data.x}"])
            .await,
        "eQ=="
    );
    k.ok(&["create", "sa", "robot"]).await;
    k.ok(&["create", "deployment", "d2", "--image=i"]).await;
    k.ok(&["create", "service", "clusterip", "sv2", "--tcp=80:8080"])
        .await;
    assert_eq!(
        k.ok(&[
            "get",
            "svc",
            "sv2",
            "-o",
            "jsonpath={.spec.ports[0].targetPort}"
        ])
        .await,
        "8080"
    );
    k.ok(&["create", "role", "r", "--verb=get", "--resource=pods"])
        .await;
    k.ok(&[
        "create",
        "rolebinding",
        "rb",
        "--role=r",
        "--serviceaccount=default:robot",
    ])
    .await;
    k.ok(&["autoscale", "deploy", "d2", "--max=5", "--cpu-percent=50"])
        .await;
    assert!(k.ok(&["get", "hpa"]).await.contains("Deployment/d2"));
    k.ok(&["expose", "deploy", "d2", "--port=80"]).await;
    assert_eq!(k.ok(&["auth", "can-i", "get", "pods"]).await.trim(), "yes");
    // Custom resources.
    let crd = crate::custom::crd().to_string();
    std::fs::write(k.lab.dir.path().join("crd.json"), crd).unwrap();
    k.ok(&["apply", "-f", "crd.json"]).await;
    k.ok(&[
        "wait",
        "--for=condition=established",
        "crd/widgets.lab.example.com",
        "--timeout=10s",
    ])
    .await;
    let widget = |size: u8| {
        format!(
            "apiVersion: lab.example.com/v1\nkind: Widget\nmetadata: {{name: w}}\nspec: {{size: {size}}}\n"
        )
    };
    std::fs::write(k.lab.dir.path().join("w.yaml"), widget(2)).unwrap();
    k.ok(&["apply", "-f", "w.yaml"]).await;
    std::fs::write(k.lab.dir.path().join("w.yaml"), widget(3)).unwrap();
    assert!(
        k.ok(&["apply", "-f", "w.yaml"])
            .await
            .contains("configured")
    );
    let table = k.ok(&["get", "wd"]).await;
    assert!(table.contains("SIZE") && table.contains('3'), "{table}");
    k.ok(&["replace", "-f", "w.yaml"]).await;
    k.ok(&["delete", "-f", "w.yaml"]).await;
    k.ok(&["delete", "cm", "cm"]).await;
    assert!(k.fails(&["get", "cm", "cm"]).await.contains("NotFound"));
    k.ok(&["delete", "-f", "m.yaml", "--ignore-not-found"])
        .await;
}

#[tokio::test]
async fn a_current_kubectl() {
    let Some(program) = current() else {
        return println!("skipped: no kubectl in KUBECTL, .tools/kubectl or PATH");
    };
    let lab = Lab::start().await;
    let kubectl = Kubectl { program, lab: &lab };
    everyday(&kubectl).await;
    assert!(
        kubectl
            .ok(&["auth", "whoami"])
            .await
            .contains("kubernetes-admin")
    );
    assert_eq!(
        kubectl
            .ok(&["create", "token", "robot"])
            .await
            .matches('.')
            .count(),
        2
    );
    std::fs::write(
        lab.dir.path().join("typo.yaml"),
        "kind: ConfigMap\napiVersion: v1\nmetadata: {name: t}\ndota: {}\n",
    )
    .unwrap();
    let error = kubectl.fails(&["create", "-f", "typo.yaml"]).await;
    assert!(error.contains("unknown field \"dota\""), "{error}");
}

#[tokio::test]
async fn kubectl_1_20() {
    let Some(program) = old() else {
        return println!("skipped: no kubectl 1.20 in KUBECTL_1_20 or .tools/kubectl-1.20");
    };
    let lab = Lab::start().await;
    everyday(&Kubectl { program, lab: &lab }).await;
}

/// Logs, exec with its exit code and standard input, and a forwarded port.
async fn streams(program: PathBuf) {
    let lab = crate::streams::with_pod().await;
    let k = Kubectl { program, lab: &lab };
    assert!(
        k.ok(&["logs", "p", "--tail=3"])
            .await
            .contains("log of p/c tail Some(3)")
    );
    let exit = k.output(&["exec", "p", "--", "exit", "3"]).await;
    assert_eq!(
        exit.status.code(),
        Some(3),
        "{}",
        String::from_utf8_lossy(&exit.stderr)
    );
    assert!(String::from_utf8_lossy(&exit.stderr).contains("bye"));
    let mut cat = Command::new(&k.program)
        .args(["exec", "-i", "p", "--", "cat"])
        .env("KUBECONFIG", lab.kubeconfig())
        .env("HOME", lab.dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut stdin = cat.stdin.take().unwrap();
    stdin.write_all(b"through the pipe").await.unwrap();
    drop(stdin);
    assert_eq!(
        cat.wait_with_output().await.unwrap().stdout,
        b"through the pipe"
    );
    let mut forward = Command::new(&k.program)
        .args(["port-forward", "pod/p", ":80"])
        .env("KUBECONFIG", lab.kubeconfig())
        .env("HOME", lab.dir.path())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    // It goes on printing: the pipe must stay open.
    let mut lines = BufReader::new(forward.stdout.take().unwrap()).lines();
    let line = lines.next_line().await.unwrap().unwrap();
    let port: u16 = line
        .split("127.0.0.1:")
        .nth(1)
        .unwrap()
        .split(' ')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    for _ in 0..2 {
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port))
            .await
            .unwrap();
        stream.write_all(b"shout").await.unwrap();
        let mut answer = [0; 5];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"SHOUT");
    }
    assert!(k.ok(&["top", "pod"]).await.contains("5m"));
}

#[tokio::test]
async fn streams_of_a_current_kubectl() {
    match current() {
        Some(program) => streams(program).await,
        None => println!("skipped: no kubectl in KUBECTL, .tools/kubectl or PATH"),
    }
}

#[tokio::test]
async fn streams_of_kubectl_1_20() {
    match old() {
        Some(program) => streams(program).await,
        None => println!("skipped: no kubectl 1.20 in KUBECTL_1_20 or .tools/kubectl-1.20"),
    }
}
