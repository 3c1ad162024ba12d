//! `testdata/in/NAME.txt` (command line, then environment) against `testdata/out/NAME.json`.
//! `UPDATE_GOLDEN=1 cargo test -p pilot-agent` writes the expected side anew.

use std::{ffi::OsString, fs, path::Path, process::Command};

use pilot_agent::{
    Environment,
    args::{Cli, Command as Subcommand, ProxyArgs},
    bootstrap::{self, Certificates, Inputs, RemoteService},
    identity::{self, Identity},
    metadata, supervise,
};

fn args(line: &str) -> ProxyArgs {
    let words: Vec<OsString> = std::iter::once("pilot-agent")
        .chain(line.split(' '))
        .map(OsString::from)
        .collect();
    match Cli::try_parse_leniently(words).unwrap().0.command {
        Subcommand::Proxy(args) => *args,
        other => panic!("{other:?}"),
    }
}

fn render(text: &str) -> serde_json::Value {
    let mut lines = text.lines();
    let args = args(lines.next().unwrap());
    let mut environment = Environment::new();
    let (mut certificates, mut statsd, mut secrets) = (Certificates::Files, None, None);
    for line in lines {
        if let Some(socket) = line.strip_prefix("@sds ") {
            certificates = Certificates::Sds(socket.to_owned());
        } else if let Some(socket) = line.strip_prefix("@secrets ") {
            secrets = Some(socket.into());
        } else if let Some(address) = line.strip_prefix("@statsd ") {
            let (ip, port) = address.split_once(' ').unwrap();
            statsd = Some((ip.parse().unwrap(), port.parse().unwrap()));
        } else {
            let (key, value) = line.split_once('=').unwrap();
            environment.insert(key.to_owned(), value.to_owned());
        }
    }
    let given = Some(environment["INSTANCE_IP"].parse().unwrap());
    let identity = Identity::new(&args, &environment, given, &[]);
    let flags: &[&str] = match (&certificates, &secrets) {
        (Certificates::Sds(_), _) => &["SDS", "TRUSTJWT"],
        (Certificates::Files, Some(_)) => &["AGENT_SDS"],
        (Certificates::Files, None) => &[],
    };
    let (metadata, errors) = metadata::collect(&environment, &identity, flags);
    assert_eq!(errors, []);
    let parse = RemoteService::parse;
    bootstrap::render(&Inputs {
        args: &args,
        identity: &identity,
        metadata: &metadata,
        pilot_san: identity::pilot_san(&args, &environment),
        certificates,
        statsd,
        metrics_service: parse("--envoyMetricsService", &args.envoy_metrics_service).unwrap(),
        access_log_service: parse("--envoyAccessLogService", &args.envoy_access_log_service)
            .unwrap(),
        secrets,
    })
    .unwrap()
}

#[test]
fn golden() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let envoy = super::envoy();
    let mut seen = 0;
    for entry in fs::read_dir(root.join("in")).unwrap() {
        let path = entry.unwrap().path();
        let rendered = render(&fs::read_to_string(&path).unwrap());
        let got = serde_json::to_string_pretty(&rendered).unwrap() + "\n";
        let out = root
            .join("out")
            .join(path.with_extension("json").file_name().unwrap());
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&out, &got).unwrap();
        }
        similar_asserts::assert_eq!(fs::read_to_string(&out).unwrap(), got, "{}", path.display());
        // Envoy 1.40 crashes in validation, and only there, on the credentials of the SDS socket.
        if let Some(envoy) = &envoy
            && !path.ends_with("mtls-sds.txt")
        {
            accepted_by(envoy, &got, &path.display().to_string());
        }
        seen += 1;
    }
    assert!(seen >= 6, "golden inputs went missing: {seen}");
}

fn accepted_by(envoy: &Path, bootstrap: &str, name: &str) {
    let directory = tempfile::tempdir().unwrap();
    let certs = directory.path().join("certs");
    fs::create_dir(&certs).unwrap();
    let pair = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    fs::write(certs.join("cert-chain.pem"), pair.cert.pem()).unwrap();
    fs::write(certs.join("root-cert.pem"), pair.cert.pem()).unwrap();
    fs::write(certs.join("key.pem"), pair.signing_key.serialize_pem()).unwrap();
    let file = directory.path().join("bootstrap.json");
    fs::write(
        &file,
        bootstrap.replace("/etc/certs", certs.to_str().unwrap()),
    )
    .unwrap();
    let output = Command::new(envoy)
        .args(["--mode", "validate", "-l", "error", "-c"])
        .arg(&file)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{name}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn bad_addresses_and_templates_are_named() {
    for bad in [
        "istio-pilot",
        "istio-pilot:",
        ":15010",
        "istio-pilot:grpc",
        "istio-pilot:0",
    ] {
        let error =
            bootstrap::host_port("--discoveryAddress", bad, "istio-pilot:15010").unwrap_err();
        assert!(
            error
                .to_string()
                .contains(&format!("--discoveryAddress {bad:?}")),
            "{error}"
        );
    }
    let directory = tempfile::tempdir().unwrap();
    let template = directory.path().join("tmpl.json");
    fs::write(&template, "{\"node\": {\"id\": \"{{ .nodeID }}\"}}").unwrap();
    let args = args(&format!("proxy --templateFile {}", template.display()));
    let error = bootstrap::source(&args, None).unwrap_err().to_string();
    assert!(
        error.contains("--templateFile") && error.contains("{{ … }}"),
        "{error}"
    );
    let error = bootstrap::source(&args, Some("/does/not/exist"))
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("ISTIO_BOOTSTRAP /does/not/exist"),
        "{error}"
    );
}

#[test]
fn no_argument_that_envoy_no_longer_knows() {
    let args = args("proxy --concurrency 2 --proxyLogLevel info");
    let line = supervise::arguments(&args, "sidecar~1.2.3.4~a.b~c", false, None).join(" ");
    assert_eq!(
        line,
        "--drain-time-s 45 --parent-shutdown-time-s 60 --service-cluster istio-proxy --service-node sidecar~1.2.3.4~a.b~c \
         --local-address-ip-version v4 -l info --component-log-level misc:error --concurrency 2 --disable-hot-restart"
    );
}
