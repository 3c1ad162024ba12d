//! `experimental`: `wait` until proxies have a config object, and `distribution`, where every object has arrived.
//!
//! Both read `/debug/config_distribution` of every Pilot and add up: a proxy is connected to one of them.

use std::{process::ExitCode, time::Duration};

use anyhow::{Context as _, bail};
use kube::api::{ApiResource, DynamicObject, GroupVersionKind};
use lab_chaos::{
    cluster::Cluster,
    pilot::{self, Distribution},
};
use mesh_config::ConfigKind;
use serde_json::json;
use tokio::time::Instant;

use crate::cli::Global;
use crate::connect::connect;
use crate::output::{OutputArgs, Paint, Table, print, print_json};
use crate::progress::Progress;

/// Between two looks at the Pilots, as Istio 1.4.
const LOOK: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Wait until proxies have a config object in its newest form.
    Wait(WaitArgs),
    /// Which config objects have arrived at how many proxies, and since when.
    Distribution(DistributionArgs),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Goal {
    /// The object is in use in the proxies.
    Distribution,
}

#[derive(Debug, clap::Args)]
pub(crate) struct WaitArgs {
    /// Kind of the object: virtualservice, VirtualService, virtual-service …
    r#type: String,
    /// NAME or NAME.NAMESPACE.
    name: String,
    /// What to wait for.
    #[arg(long = "for", value_enum, default_value = "distribution")]
    goal: Goal,
    /// Give up after this.
    #[arg(long, default_value = "30s", value_parser = seconds, value_name = "DURATION")]
    timeout: Duration,
    /// The share of proxies that must have it, 0 to 1.
    #[arg(long, default_value_t = 1.0, value_name = "SHARE")]
    threshold: f64,
    /// Wait for this version of the object [default: the one the API server has now].
    #[arg(long, value_name = "VERSION")]
    resource_version: Option<String>,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, clap::Args)]
pub(crate) struct DistributionArgs {
    #[command(flatten)]
    output: OutputArgs,
}

/// `90s`, `2m`, or a bare number of seconds.
fn seconds(text: &str) -> Result<Duration, String> {
    let (number, scale) = match text.strip_suffix('m') {
        Some(minutes) => (minutes, 60),
        None => (text.strip_suffix('s').unwrap_or(text), 1),
    };
    let number: u64 = number
        .parse()
        .map_err(|_| format!("{text:?} is no duration; accepted: 30s, 2m"))?;
    Ok(Duration::from_secs(number * scale))
}

pub(crate) async fn run(global: &Global, command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Wait(args) => wait(global, args).await,
        Command::Distribution(args) => distribution(global, args).await,
    }
}

/// Kinds by any usual spelling.
fn kind(text: &str) -> anyhow::Result<ConfigKind> {
    let plain = |s: &str| s.replace('-', "").to_ascii_lowercase();
    let wanted = plain(text);
    let found = ConfigKind::ALL
        .iter()
        .find(|k| [plain(k.kind()), k.plural().to_owned()].contains(&wanted));
    found.copied().with_context(|| {
        let known: Vec<String> = ConfigKind::ALL.iter().map(|k| k.schema_name()).collect();
        format!(
            "{text:?} is no kind of mesh config; known: {}",
            known.join(", ")
        )
    })
}

/// One object over all Pilots.
fn sum(all: impl IntoIterator<Item = Distribution>) -> Option<Distribution> {
    all.into_iter().reduce(|mut sum, more| {
        sum.proxies += more.proxies;
        sum.have += more.have;
        sum.since = sum.since.max(more.since);
        sum.waiting.extend(more.waiting);
        sum.refused.extend(more.refused);
        // A Pilot that still serves an older form has nobody with the newer one.
        if sum.resource_version != more.resource_version {
            sum.have = 0;
        }
        sum
    })
}

async fn version(
    cluster: &Cluster,
    kind: ConfigKind,
    namespace: &str,
    name: &str,
) -> anyhow::Result<String> {
    let gvk = GroupVersionKind::gvk(kind.group(), kind.version(), kind.kind());
    let resource = ApiResource::from_gvk_with_plural(&gvk, kind.plural());
    let api =
        kube::Api::<DynamicObject>::namespaced_with(cluster.client.clone(), namespace, &resource);
    let object = api
        .get(name)
        .await
        .with_context(|| format!("{kind} {namespace}/{name}"))?;
    object
        .metadata
        .resource_version
        .with_context(|| format!("{kind} {namespace}/{name} has no resourceVersion"))
}

async fn wait(global: &Global, args: WaitArgs) -> anyhow::Result<ExitCode> {
    let WaitArgs {
        r#type,
        name,
        goal: Goal::Distribution,
        timeout,
        threshold,
        resource_version,
        output,
    } = args;
    if !(0.0..=1.0).contains(&threshold) {
        bail!("--threshold {threshold}: a share of proxies is between 0 and 1");
    }
    let kind = kind(&r#type)?;
    let cluster = connect(global).await?;
    let (name, namespace) = match name.rsplit_once('.') {
        Some((name, namespace)) => (name.to_owned(), namespace.to_owned()),
        None => (name, cluster.namespace.clone()),
    };
    let wanted = match resource_version {
        Some(version) => version,
        None => version(&cluster, kind, &namespace, &name).await?,
    };
    let key = format!("{}/{namespace}/{name}", kind.schema_name());
    let progress = Progress::new();
    let step = progress.step(format!("{kind} {namespace}/{name}"));
    let end = Instant::now() + timeout;
    loop {
        let all = pilot::distribution(&cluster).await?;
        let of_object = all.into_values().flatten().filter(|d| d.resource == key);
        let found = sum(of_object.map(|d| match d.resource_version == wanted {
            true => d,
            false => Distribution { have: 0, ..d },
        }));
        let found = found.unwrap_or_default();
        let Distribution { have, proxies, .. } = found;
        if proxies > 0 && have as f64 >= threshold * proxies as f64 {
            step.done(&format!("is in {have} of {proxies} proxies"));
            if output.is_json() {
                print_json(
                    &json!({"resource": key, "resourceVersion": wanted, "have": have, "proxies": proxies, "since": found.since}),
                )?;
            } else {
                print(&format!(
                    "Resource {key} present on {have} out of {proxies} sidecars\n"
                ));
            }
            return Ok(ExitCode::SUCCESS);
        }
        if Instant::now() >= end {
            let words = found
                .refused
                .iter()
                .map(|r| format!("\n{} refused {}: {}", r.proxy, r.r#type, r.error));
            let words: String = words.collect();
            step.fail(&format!("is in {have} of {proxies} proxies"));
            bail!(
                "after {timeout:?} {key} in version {wanted} is in {have} of {proxies} proxies; waiting: {}{words}",
                if found.waiting.is_empty() {
                    "none".to_owned()
                } else {
                    found.waiting.join(", ")
                }
            );
        }
        step.update(&format!("{have} of {proxies} proxies"));
        tokio::time::sleep_until(end.min(Instant::now() + LOOK)).await;
    }
}

async fn distribution(global: &Global, args: DistributionArgs) -> anyhow::Result<ExitCode> {
    let cluster = connect(global).await?;
    let mut objects: Vec<Distribution> = Vec::new();
    let mut all: Vec<Distribution> = pilot::distribution(&cluster)
        .await?
        .into_values()
        .flatten()
        .collect();
    all.sort_by(|a, b| a.resource.cmp(&b.resource));
    for group in all.chunk_by(|a, b| a.resource == b.resource) {
        objects.extend(sum(group.iter().cloned()));
    }
    if args.output.is_json() {
        let list: Vec<_> = objects
            .iter()
            .map(|d| {
                json!({"resource": d.resource, "resourceVersion": d.resource_version, "have": d.have,
                       "proxies": d.proxies, "since": d.since, "waiting": d.waiting})
            })
            .collect();
        print_json(&list)?;
        return Ok(ExitCode::SUCCESS);
    }
    print(&table(&objects, Paint::stdout()));
    Ok(ExitCode::SUCCESS)
}

fn table(objects: &[Distribution], paint: Paint) -> String {
    let mut table = Table::new(&["RESOURCE", "VERSION", "PROXIES", "SINCE"]);
    for object in objects {
        let count = format!("{}/{}", object.have, object.proxies);
        let count = match object.have == object.proxies {
            true => paint.good(&count),
            false => paint.bad(&count),
        };
        let since = object.since.clone().unwrap_or_else(|| "-".to_owned());
        table.row([
            object.resource.clone(),
            object.resource_version.clone(),
            count,
            since,
        ]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_found_in_every_spelling() {
        for text in [
            "virtualservice",
            "VirtualService",
            "virtual-service",
            "virtualservices",
        ] {
            assert_eq!(kind(text).expect(text), ConfigKind::VirtualService);
        }
        let error = kind("pod").expect_err("no config").to_string();
        assert!(error.contains("destination-rule"), "{error}");
    }

    #[test]
    fn pilots_add_up_and_an_older_form_does_not_count() {
        let of = |version: &str, have| Distribution {
            resource_version: version.to_owned(),
            proxies: 3,
            have,
            ..Distribution::default()
        };
        let both = sum([of("7", 3), of("7", 2)]).expect("two");
        assert_eq!((both.proxies, both.have), (6, 5));
        assert_eq!(sum([of("7", 3), of("6", 3)]).expect("two").have, 0);
        assert_eq!(seconds("2m"), Ok(Duration::from_secs(120)));
        assert!(seconds("soon").is_err());
    }
}
