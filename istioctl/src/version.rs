//! `version`: this program, the control plane, the proxies.

use std::collections::BTreeMap;
use std::process::ExitCode;

use lab_chaos::cluster::Cluster;
use lab_chaos::mesh;
use serde_json::json;

use crate::cli::Global;
use crate::connect::connect;
use crate::output::{OutputArgs, print, print_json};

/// Arguments of `version`.
#[derive(Debug, clap::Args)]
pub(crate) struct VersionArgs {
    /// Ask the cluster, too.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    remote: bool,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) async fn run(global: &Global, args: VersionArgs) -> anyhow::Result<ExitCode> {
    let client = env!("CARGO_PKG_VERSION");
    let remote = match args.remote {
        true => remote(global).await,
        false => Err(anyhow::anyhow!("not asked")),
    };
    if args.output.is_json() {
        let mut value = json!({"clientVersion": {"version": client}});
        if let Ok((mesh, data)) = &remote {
            value["meshVersion"] = mesh
                .iter()
                .map(|(pod, version)| json!({"Component": "pilot", "Pod": pod, "Info": {"version": version}}))
                .collect();
            value["dataPlaneVersion"] = data
                .iter()
                .map(|(id, version)| json!({"ID": id, "IstioVersion": version}))
                .collect();
        }
        print_json(&value)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut text = match args.remote {
        true => format!("client version: {client}\n"),
        false => format!("{client}\n"),
    };
    match remote {
        Ok((mesh, data)) => text.push_str(&lines(&mesh, &data)),
        Err(error) if args.remote => eprintln!("control plane unknown: {error:#}"),
        Err(_) => {}
    }
    print(&text);
    Ok(ExitCode::SUCCESS)
}

type Versions = Vec<(String, String)>;

async fn remote(global: &Global) -> anyhow::Result<(Versions, Versions)> {
    let cluster = connect(global).await?;
    let mut pilots = Vec::new();
    let mut proxies = Vec::new();
    for (pod, known) in mesh::syncz(&cluster).await? {
        pilots.push((pod.clone(), pilot_version(&cluster, &pod).await));
        proxies.extend(known.into_iter().map(|s| (s.proxy, s.istio_version)));
    }
    proxies.sort();
    Ok((pilots, proxies))
}

async fn pilot_version(cluster: &Cluster, pod: &str) -> String {
    let asked = cluster
        .pod_get(&cluster.istio_namespace, pod, mesh::PILOT_HTTP, "/version")
        .await;
    let text = asked.ok().filter(|r| r.status == 200).map(|r| r.text());
    let parsed = text
        .as_deref()
        .and_then(|t| serde_json::from_str::<serde_json::Value>(t).ok());
    match parsed.as_ref().and_then(|v| v["version"].as_str()) {
        Some(version) => version.to_owned(),
        None => text.map_or("unknown".to_owned(), |t| t.trim().to_owned()),
    }
}

fn lines(mesh: &Versions, data: &Versions) -> String {
    let mut text = String::new();
    let mut distinct: Vec<&str> = mesh.iter().map(|(_, v)| v.as_str()).collect();
    distinct.sort_unstable();
    distinct.dedup();
    match distinct[..] {
        [one] => text.push_str(&format!("control plane version: {one}\n")),
        _ => mesh
            .iter()
            .for_each(|(pod, v)| text.push_str(&format!("{pod} version: {v}\n"))),
    }
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    data.iter()
        .for_each(|(_, v)| *counts.entry(v).or_default() += 1);
    let parts: Vec<String> = counts
        .iter()
        .map(|(v, n)| format!("{v} ({n} proxies)"))
        .collect();
    let all = if parts.is_empty() {
        "none".to_owned()
    } else {
        parts.join(", ")
    };
    text.push_str(&format!("data plane version: {all}\n"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_versions_are_said_once_and_proxies_counted() {
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        let text = lines(
            &vec![pair("p1", "1"), pair("p2", "1")],
            &vec![pair("a", "1"), pair("b", "1"), pair("c", "2")],
        );
        assert_eq!(
            text,
            "control plane version: 1\ndata plane version: 1 (2 proxies), 2 (1 proxies)\n"
        );
        assert_eq!(
            lines(&vec![pair("p1", "1"), pair("p2", "2")], &vec![]),
            "p1 version: 1\np2 version: 2\ndata plane version: none\n"
        );
    }
}
