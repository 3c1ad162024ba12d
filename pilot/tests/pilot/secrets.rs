//! Gateways whose certificates are named: the agent's secret discovery, over Secrets of the lab's Kubernetes API.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api,
    api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams},
};
use pilot_agent::sds::{
    Files as CertificateFiles, Keeper, KubernetesSecrets, Material, Problem, SecretSource, serve,
};
use serde_json::json;

use super::harness::*;

/// The agent is of Envoy's user; this test is not.
fn serve_to_envoy(socket: &Path, keeper: &Arc<Keeper>) {
    serve(socket, keeper.clone()).unwrap();
    std::os::unix::fs::chown(socket, Some(1337), Some(1337)).unwrap();
}

/// What pilot-agent starts for its Envoy, and a Kubernetes API behind it.
struct Agent {
    secrets: Api<Secret>,
    socket: PathBuf,
    _folder: Files,
    _state: tempfile::TempDir,
}

impl Agent {
    async fn start() -> Self {
        let (folder, state) = (Files::new(), tempfile::tempdir().unwrap());
        let server = lab_kubernetes::ApiServer::open(lab_kubernetes::Config::new(state.path()))
            .await
            .unwrap();
        let client = server.client("system:serviceaccount:istio-system:gateway");
        let secrets = Api::namespaced(client.clone(), "istio-system");
        // The namespace is made as the server starts, or here.
        let namespaces: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(client.clone());
        let _ = namespaces
            .create(
                &PostParams::default(),
                &serde_json::from_value(json!({"metadata": {"name": "istio-system"}})).unwrap(),
            )
            .await;
        let files = Arc::new(CertificateFiles::default());
        let kubernetes = Arc::new(KubernetesSecrets::new("istio-system".to_owned(), None));
        let sources: Vec<Arc<dyn SecretSource>> = vec![files.clone(), kubernetes.clone()];
        let keeper = Keeper::new(sources);
        let socket = PathBuf::from(folder.path("sds"));
        serve_to_envoy(&socket, &keeper);
        tokio::spawn(files.follow(keeper.clone()));
        tokio::spawn(kubernetes.clone().follow(client, keeper.clone()));
        kubernetes.listed().await;
        keeper.open();
        Self {
            secrets,
            socket,
            _folder: folder,
            _state: state,
        }
    }

    async fn put(&self, name: &str, data: &[(&str, &str)]) {
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                ..Default::default()
            },
            data: Some(
                data.iter()
                    .map(|(k, v)| ((*k).to_owned(), ByteString(v.as_bytes().to_vec())))
                    .collect(),
            ),
            ..Default::default()
        };
        let params = PatchParams::apply("test").force();
        self.secrets
            .patch(name, &params, &Patch::Apply(secret))
            .await
            .unwrap();
    }
}

#[test]
fn named_certificates_come_change_and_stay_when_they_turn_bad() {
    isolated(async |net| {
        let agent = Agent::start().await;
        let (first, second) = (Authority::new("first"), Authority::new("second"));
        let (web, files) = (net.http("web").await, Files::new());
        first.files(&files, "file", &["file.test"]);
        let server = |name: &str, tls: &str| {
            format!(
                "  - {{port: {{number: 443, name: {name}, protocol: HTTPS}}, hosts: [{name}.test], tls: {{{tls}}}}}\n"
            )
        };
        let servers = server("web", "mode: SIMPLE, credentialName: web")
            + &server("typed", "mode: SIMPLE, credentialName: typed")
            + &server("mutual", "mode: MUTUAL, credentialName: mutual")
            + &server(
                "file",
                &format!(
                    "mode: SIMPLE, serverCertificate: {}, privateKey: {}",
                    files.path("file.pem"),
                    files.path("file.key")
                ),
            );
        let hosts = "  hosts: [web.test, typed.test, mutual.test, file.test]
  gateways: [istio-system/edge]
  http: [{route: [{destination: {host: web}}]}]";
        let rules = config(
            "Gateway",
            "edge.istio-system",
            &format!("  selector: {{istio: ingressgateway}}\n  servers:\n{servers}"),
        ) + &config("VirtualService", "web.shop", hosts)
            + &service("web.shop", "10.96.0.1", "80 http HTTP", &[web.endpoint("")]);
        let pilot = net
            .pilot()
            .start(|folder| write(folder, "all", &rules))
            .await;

        let (web_one, web_two) = (first.issue(&["web.test"]), second.issue(&["web.test"]));
        let typed = first.issue(&["typed.test"]);
        let mutual = first.issue(&["mutual.test"]);
        agent
            .put(
                "typed",
                &[
                    ("tls.crt", &typed.certificate_pem),
                    ("tls.key", &typed.key_pem),
                ],
            )
            .await;
        agent
            .put(
                "mutual",
                &[
                    ("cert", &mutual.certificate_pem),
                    ("key", &mutual.key_pem),
                    ("cacert", &first.pem()),
                ],
            )
            .await;
        let gateway = Proxy::router("edge-0.istio-system")
            .secrets(&agent.socket)
            .metadata("USER_SDS", json!("true"))
            .start(net, &pilot)
            .await;
        let at = (gateway.ip(), 443);
        let ask = async |host: &str, authority: &Authority, identity: Option<&Identity>| {
            ask_tls(at, host, authority, identity, Request::get("/").host(host)).await
        };
        let status = |answer: Result<Response, String>| answer.map(|a| a.status).ok();

        until("Secrets with tls.crt", async || {
            ask("typed.test", &first, None).await.ok()
        })
        .await;
        until("files, by the same agent", async || {
            ask("file.test", &first, None).await.ok()
        })
        .await;
        let client = first.issue(&["client.test"]);
        until("clients with a certificate", async || {
            ask("mutual.test", &first, Some(&client)).await.ok()
        })
        .await;
        assert!(ask("mutual.test", &first, None).await.is_err());
        assert!(
            ask("mutual.test", &first, Some(&second.issue(&["client.test"])))
                .await
                .is_err()
        );
        // A Secret that does not exist closes its own server only, and is taken up when it comes.
        assert!(ask("web.test", &first, None).await.is_err());
        agent
            .put(
                "web",
                &[
                    ("cert", &web_one.certificate_pem),
                    ("key", &web_one.key_pem),
                ],
            )
            .await;
        until("the Secret that came late", async || {
            ask("web.test", &first, None).await.ok()
        })
        .await;

        // Rotation; then a key that does not belong to the certificate; then nothing at all.
        agent
            .put(
                "web",
                &[
                    ("cert", &web_two.certificate_pem),
                    ("key", &web_two.key_pem),
                ],
            )
            .await;
        until("the new certificate", async || {
            ask("web.test", &second, None).await.ok()
        })
        .await;
        agent
            .put(
                "web",
                &[
                    ("cert", &web_one.certificate_pem),
                    ("key", &web_two.key_pem),
                ],
            )
            .await;
        agent
            .put(
                "typed",
                &[
                    ("tls.crt", &web_two.certificate_pem),
                    ("tls.key", &web_two.key_pem),
                ],
            )
            .await;
        until("what came after the bad one", async || {
            ask_tls(
                at,
                "typed.test",
                &second,
                None,
                Request::get("/").host("typed.test"),
            )
            .await
            .err()
            .filter(|e| e.contains("not valid for name"))
        })
        .await;
        assert_eq!(status(ask("web.test", &second, None).await), Some(200));
        agent
            .secrets
            .delete("web", &DeleteParams::default())
            .await
            .unwrap();
        agent
            .put(
                "typed",
                &[
                    ("tls.crt", &typed.certificate_pem),
                    ("tls.key", &typed.key_pem),
                ],
            )
            .await;
        until("what came after the deletion", async || {
            ask("typed.test", &first, None).await.ok()
        })
        .await;
        assert_eq!(status(ask("web.test", &second, None).await), Some(200));
        gateway.assert_nothing_rejected().await;
    });
}

#[test]
fn a_sidecars_files_are_followed_wherever_they_come_from() {
    isolated(async |net| {
        let agent = Agent::start().await;
        let (authority, files) = (Authority::new("world"), Files::new());
        let identity = authority.issue(&["api.test"]);
        let listener = tokio::net::TcpListener::bind((net.address(), 8443))
            .await
            .unwrap();
        let api = Backend::https("api", listener, server_tls(&identity, Some(&authority)));
        let folder = files.path("later");
        let tls = format!(
            "mode: MUTUAL, caCertificates: {folder}/ca.pem, clientCertificate: {folder}/client.pem, privateKey: {folder}/client.key, subjectAltNames: [api.test]"
        );
        let config = service("api.shop", "10.96.0.1", "80 http HTTP", &[api.endpoint("")])
            + &destination_rule(
                "api.shop",
                "api",
                &format!("  trafficPolicy: {{tls: {{{tls}}}}}"),
            );
        let pilot = net
            .pilot()
            .start(|folder| write(folder, "all", &config))
            .await;
        let client = Proxy::sidecar("client-0.shop")
            .bound()
            .secrets(&agent.socket)
            .start(net, &pilot)
            .await;
        let status = async || {
            let request = Request::get("/").host("api");
            client.ask("10.96.0.1:80", request).await.unwrap().status
        };
        assert_eq!(status().await, 503, "neither files nor their directory");
        std::fs::create_dir(&folder).unwrap();
        let own = authority.issue(&["client.test"]);
        for (name, text) in [
            ("ca.pem", &authority.pem()),
            ("client.pem", &own.certificate_pem),
            ("client.key", &own.key_pem),
        ] {
            std::fs::write(format!("{folder}/{name}"), text).unwrap();
        }
        until("the files that came late", async || {
            (status().await == 200).then_some(())
        })
        .await;
        assert!(api.take()[0].certificate.is_some());
        client.assert_nothing_rejected().await;
    });
}

/// A workload's own certificate, as the mesh's secret discovery has it.
struct Workload {
    own: Material,
    roots: Material,
}

impl SecretSource for Workload {
    fn owns(&self, name: &str) -> bool {
        matches!(name, "default" | "ROOTCA")
    }

    fn find(&self, name: &str) -> Result<Material, Problem> {
        Ok(match name {
            "default" => self.own.clone(),
            _ => self.roots.clone(),
        })
    }
}

#[test]
fn mesh_certificates_come_from_the_meshs_secret_discovery() {
    isolated(async |net| {
        let (mesh, files) = (Authority::new("mesh"), Files::new());
        let own = mesh.issue(&["spiffe://cluster.local/ns/shop/sa/client"]);
        let source = Workload {
            own: Material::pair("test", own.certificate_pem.into(), own.key_pem.into()).unwrap(),
            roots: Material::authorities("test", mesh.pem().into()).unwrap(),
        };
        let keeper = Keeper::new(vec![Arc::new(source)]);
        keeper.open();
        let socket = files.path("uds_path");
        serve_to_envoy(Path::new(&socket), &keeper);
        files.write("token", "a token");

        let account = "spiffe://cluster.local/ns/shop/sa/web";
        let listener = tokio::net::TcpListener::bind((net.address(), 8443))
            .await
            .unwrap();
        let mut tls = server_tls(&mesh.issue(&[account]), Some(&mesh));
        tls.alpn_protocols = vec![b"istio".to_vec()];
        let web = Backend::https("web", listener, tls);
        let policy = format!(
            "  trafficPolicy: {{tls: {{mode: ISTIO_MUTUAL, subjectAltNames: ['{account}']}}}}"
        );
        let config = service("web.shop", "10.96.0.1", "80 http HTTP", &[web.endpoint("")])
            + &destination_rule("web.shop", "web", &policy);
        let pilot = net
            .pilot()
            .mesh(&format!("sdsUdsPath: 'unix:{socket}'"))
            .start(|folder| write(folder, "all", &config))
            .await;
        let client = Proxy::sidecar("client-0.shop")
            .bound()
            .metadata("SDS_TOKEN_PATH", json!(files.path("token")))
            .start(net, &pilot)
            .await;
        until("the workload's own certificate", async || {
            let request = Request::get("/").host("web");
            let answer = client.ask("10.96.0.1:80", request).await.unwrap();
            (answer.status == 200).then_some(())
        })
        .await;
        assert!(web.take()[0].certificate.is_some());
        client.assert_nothing_rejected().await;
    });
}
