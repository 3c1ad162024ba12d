//! `proxy-status`: one line per proxy, from `/debug/syncz` of every Pilot.

use std::process::ExitCode;

use lab_chaos::mesh::{self, SyncStatus};
use serde_json::json;

use crate::cli::Global;
use crate::connect::connect;
use crate::output::{OutputArgs, Paint, Table, print, print_json};

/// Arguments of `proxy-status`.
#[derive(Debug, clap::Args)]
pub(crate) struct StatusArgs {
    /// Only this proxy: POD, POD.NAMESPACE or deploy/NAME.
    pod: Option<String>,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) async fn status(global: &Global, args: StatusArgs) -> anyhow::Result<ExitCode> {
    let cluster = connect(global).await?;
    let by_pilot = mesh::syncz(&cluster).await?;
    let mut rows: Vec<(SyncStatus, String)> = by_pilot
        .into_iter()
        .flat_map(|(pilot, proxies)| proxies.into_iter().map(move |p| (p, pilot.clone())))
        .collect();
    if let Some(pod) = &args.pod {
        let (pod, namespace) = super::resolve(pod, &cluster).await?;
        let id = format!("{pod}.{namespace}");
        rows.retain(|(status, _)| status.proxy == id);
        if rows.is_empty() {
            anyhow::bail!(
                "no Pilot knows a proxy {id}; `istioctl proxy-status` lists those that are connected"
            );
        }
    }
    rows.sort_by(|a, b| a.0.proxy.cmp(&b.0.proxy));
    if args.output.is_json() {
        let list: Vec<_> = rows.iter().map(|(s, pilot)| as_json(s, pilot)).collect();
        print_json(&list)?;
        return Ok(ExitCode::SUCCESS);
    }
    let paint = Paint::stdout();
    print(&table(&rows, paint));
    print(&refusals(&rows, paint));
    Ok(ExitCode::SUCCESS)
}

/// What proxies refused, in their own words, below the table.
fn refusals(rows: &[(SyncStatus, String)], paint: Paint) -> String {
    let mut out = String::new();
    for (status, _) in rows {
        for (kind, error) in status.refusals() {
            out += &format!(
                "\n{} {kind} {}: {error}",
                status.proxy,
                paint.bad("refused")
            );
        }
    }
    if !out.is_empty() {
        out.push('\n');
    }
    out
}

fn table(rows: &[(SyncStatus, String)], paint: Paint) -> String {
    let mut table = Table::new(&["NAME", "CDS", "LDS", "EDS", "RDS", "PILOT", "VERSION"]).gap(5);
    for (status, pilot) in rows {
        let mut cells = vec![status.proxy.clone()];
        cells.extend(status.types().map(|(_, sent, acked)| {
            let word = state(sent, acked);
            match word {
                "SYNCED" => paint.good(word),
                "NOT SENT" => paint.dim(word),
                _ => paint.bad(word),
            }
        }));
        cells.push(pilot.clone());
        cells.push(version(status));
        table.row(cells);
    }
    table.render()
}

fn as_json(status: &SyncStatus, pilot: &str) -> serde_json::Value {
    let mut value = json!({"proxy": status.proxy, "pilot": pilot, "version": version(status)});
    for (kind, sent, acked) in status.types() {
        value[kind.to_lowercase()] = json!(state(sent, acked));
    }
    let refused: serde_json::Map<_, _> = status
        .refusals()
        .map(|(kind, error)| (kind.to_lowercase(), json!(error)))
        .collect();
    if !refused.is_empty() {
        value["refused"] = refused.into();
    }
    value
}

/// Istio's words for a pair of nonces.
fn state(sent: &str, acked: &str) -> &'static str {
    match (sent, acked) {
        ("", _) => "NOT SENT",
        (sent, acked) if sent == acked => "SYNCED",
        (_, "") => "STALE (Never Acknowledged)",
        _ => "STALE",
    }
}

fn version(status: &SyncStatus) -> String {
    match status.istio_version.is_empty() {
        false => status.istio_version.clone(),
        true => format!("{}*", status.proxy_version),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_istios() {
        assert_eq!(state("", ""), "NOT SENT");
        assert_eq!(state("a", "a"), "SYNCED");
        assert_eq!(state("a", ""), "STALE (Never Acknowledged)");
        assert_eq!(state("b", "a"), "STALE");
    }

    #[test]
    fn what_a_proxy_refused_is_told_in_its_words() {
        let status: SyncStatus = serde_json::from_value(json!({
            "proxy": "a.default", "route_sent": "2", "route_acked": "1", "route_error": "no such cluster"
        }))
        .expect("an entry");
        let value = as_json(&status, "pilot");
        assert_eq!(value["refused"], json!({"rds": "no such cluster"}));
        let text = refusals(&[(status, "pilot".to_owned())], Paint::stdout());
        assert!(
            text.contains("a.default RDS") && text.contains("no such cluster"),
            "{text}"
        );
        assert_eq!(refusals(&[], Paint::stdout()), "");
    }

    #[test]
    fn columns_are_istios() {
        let status: SyncStatus = serde_json::from_value(json!({
            "proxy": "a.default", "istio_version": "1.4.10", "cluster_sent": "n", "cluster_acked": "n",
            "listener_sent": "n", "route_sent": "2", "route_acked": "1"
        }))
        .expect("an entry");
        let rows = [(status, "istio-pilot-1".to_owned())];
        let text = table(&rows, Paint::stdout());
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|l| {
                l.split("     ")
                    .map(str::trim)
                    .filter(|c| !c.is_empty())
                    .collect()
            })
            .collect();
        assert_eq!(
            lines[0],
            ["NAME", "CDS", "LDS", "EDS", "RDS", "PILOT", "VERSION"]
        );
        assert_eq!(
            lines[1],
            [
                "a.default",
                "SYNCED",
                "STALE (Never Acknowledged)",
                "NOT SENT",
                "STALE",
                "istio-pilot-1",
                "1.4.10"
            ]
        );
    }
}
