//! A config directory of generated services: ServiceEntries with addresses, endpoints and an HTTP port, as many and as
//! alike as a large mesh has them. Service 0 has a file of its own, so that a change of it is a change of one small file.

use std::{fmt::Write as _, path::Path};

use anyhow::Context as _;

/// Services per file.
const PER_FILE: usize = 100;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How many services.
    #[arg(long, default_value_t = 1000)]
    services: usize,
    /// Endpoints of each.
    #[arg(long, default_value_t = 2)]
    endpoints: usize,
    /// Where to; created if missing.
    #[arg(long)]
    dir: std::path::PathBuf,
}

/// The namespace of all of it.
pub(crate) const NAMESPACE: &str = "load";

/// The host of a service.
pub(crate) fn host(number: usize) -> String {
    format!("svc-{number:05}.{NAMESPACE}.svc.cluster.local")
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    write(&args.dir, args.services, args.endpoints)?;
    println!(
        "{} services with {} endpoints each in {}",
        args.services,
        args.endpoints,
        args.dir.display()
    );
    Ok(())
}

/// Writes the directory.
pub(crate) fn write(dir: &Path, services: usize, endpoints: usize) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("--dir {}", dir.display()))?;
    let all: Vec<usize> = (1..services).collect();
    for (index, chunk) in all.chunks(PER_FILE).enumerate() {
        let text: String = chunk
            .iter()
            .map(|number| service_entry(*number, endpoints))
            .collect();
        replace(&dir.join(format!("services-{index:03}.yaml")), &text)?;
    }
    write_first(dir, endpoints)
}

/// (Re)writes service 0 with this many endpoints.
pub(crate) fn write_first(dir: &Path, endpoints: usize) -> anyhow::Result<()> {
    replace(&dir.join("service-0.yaml"), &service_entry(0, endpoints))
}

/// Writes a VirtualService for service 0 with this timeout.
pub(crate) fn write_virtual_service(dir: &Path, timeout_seconds: u32) -> anyhow::Result<()> {
    let host = host(0);
    let text = format!(
        "apiVersion: networking.istio.io/v1alpha3
kind: VirtualService
metadata:
  name: svc-00000
  namespace: {NAMESPACE}
spec:
  hosts: [{host}]
  http:
  - timeout: {timeout_seconds}s
    route:
    - destination:
        host: {host}
"
    );
    replace(&dir.join("virtual-service-0.yaml"), &text)
}

fn service_entry(number: usize, endpoints: usize) -> String {
    let mut text = format!(
        "---
apiVersion: networking.istio.io/v1alpha3
kind: ServiceEntry
metadata:
  name: svc-{number:05}
  namespace: {NAMESPACE}
spec:
  hosts: [{}]
  addresses: [10.{}.{}.{}]
  location: MESH_INTERNAL
  resolution: STATIC
  ports:
  - number: 80
    name: http
    protocol: HTTP
  endpoints:
",
        host(number),
        100 + number / 62_500,
        number / 250 % 250,
        number % 250 + 1,
    );
    for endpoint in 0..endpoints {
        let unique = number * endpoints.max(1) + endpoint;
        let _ = write!(
            text,
            "  - address: 10.{}.{}.{}
    ports: {{http: 8080}}
    labels: {{app: svc-{number:05}, version: v{}}}
",
            10 + unique / 62_500,
            unique / 250 % 250,
            unique % 250 + 1,
            endpoint + 1,
        );
    }
    text
}

/// A reader sees the old file or the new one.
fn replace(path: &Path, text: &str) -> anyhow::Result<()> {
    let partial = path.with_extension("partial");
    std::fs::write(&partial, text)
        .and_then(|()| std::fs::rename(&partial, path))
        .with_context(|| format!("cannot write {}", path.display()))
}
