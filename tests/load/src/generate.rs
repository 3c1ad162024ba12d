//! A config directory of generated services: ServiceEntries with addresses, endpoints and an HTTP port, as many and as
//! alike as a large mesh has them. The first services have files of their own, so that a change of one is a change of one
//! small file.

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
    /// How many of the services, from 0 on, get a file each: these can be changed one by one.
    #[arg(long, default_value_t = 1)]
    single: usize,
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
    let Args {
        services,
        endpoints,
        single,
        dir,
    } = args;
    write(dir, *services, *endpoints, *single)?;
    println!(
        "{services} services with {endpoints} endpoints each in {}",
        dir.display()
    );
    Ok(())
}

/// Writes the directory.
pub(crate) fn write(
    dir: &Path,
    services: usize,
    endpoints: usize,
    single: usize,
) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("--dir {}", dir.display()))?;
    let all: Vec<usize> = (single..services).collect();
    for (index, chunk) in all.chunks(PER_FILE).enumerate() {
        let text: String = chunk
            .iter()
            .map(|number| service_entry(*number, endpoints))
            .collect();
        replace(&dir.join(format!("services-{index:03}.yaml")), &text)?;
    }
    (0..single.min(services)).try_for_each(|number| write_service(dir, number, endpoints))
}

/// (Re)writes a service that has a file of its own.
pub(crate) fn write_service(dir: &Path, number: usize, endpoints: usize) -> anyhow::Result<()> {
    let text = service_entry(number, endpoints);
    replace(&dir.join(format!("service-{number}.yaml")), &text)
}

/// Removes a service that has a file of its own.
pub(crate) fn remove_service(dir: &Path, number: usize) -> anyhow::Result<()> {
    remove(&dir.join(format!("service-{number}.yaml")))
}

/// Removes the VirtualService of a service.
pub(crate) fn remove_virtual_service(dir: &Path, number: usize) -> anyhow::Result<()> {
    remove(&dir.join(format!("virtual-service-{number}.yaml")))
}

fn remove(path: &Path) -> anyhow::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Writes a VirtualService for a service, with this timeout.
pub(crate) fn write_virtual_service(
    dir: &Path,
    number: usize,
    timeout_seconds: u32,
) -> anyhow::Result<()> {
    let host = host(number);
    let text = format!(
        "apiVersion: networking.istio.io/v1alpha3
kind: VirtualService
metadata:
  name: svc-{number:05}
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
    replace(&dir.join(format!("virtual-service-{number}.yaml")), &text)
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
