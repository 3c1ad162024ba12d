//! Patches of clusters.

use ahash::AHashSet;
use envoy_types::pb::envoy::extensions::upstreams::http::v3::{
    HttpProtocolOptions,
    http_protocol_options::{
        ExplicitHttpConfig, UpstreamProtocolOptions, explicit_http_config::ProtocolConfig,
    },
};
use prost::{Message as _, Name as _};
use proto_networking::networking::envoy_filter::{ApplyTo, patch::Operation};

use super::{
    Encoded, Side, check,
    compile::Patch,
    run::{Effect, Resource, Run, Work, merged},
};
use crate::{
    envoy::{self, cluster::Cluster},
    report::Report,
    snapshot::Scope,
};

impl Resource for Cluster {
    const KIND: &'static str = "cluster";

    fn name(&self) -> &str {
        &self.name
    }

    fn check(&self) -> Result<(), String> {
        check::cluster(self)
    }
}

/// A generator's clusters, patched and encoded. Names stay unique.
pub fn clusters(
    scope: &Scope,
    side: Side,
    list: Vec<Cluster>,
    report: &mut Report,
) -> Vec<Encoded<Cluster>> {
    let steps = scope.key().patches.clusters(side);
    if steps.is_empty() {
        return list.into_iter().map(Encoded::plain).collect();
    }
    let mut run = Run::new(side);
    let work = Work {
        apply: &apply,
        beside: &|_| Ok(()),
    };
    let mut out = Vec::with_capacity(list.len());
    for cluster in list {
        let concerned: Vec<_> = steps
            .iter()
            .filter(|step| !step.patch().is_addition() && step.patch().cluster.holds(&cluster))
            .copied()
            .collect();
        out.extend(run.settle(cluster, &concerned, &work));
    }
    let names: AHashSet<String> = out.iter().map(|c| c.name.clone()).collect();
    let before = out.len();
    run.additions(
        ApplyTo::Cluster,
        &steps,
        &mut out,
        |list, cluster: &Cluster| {
            let name = &cluster.name;
            let taken = names.contains(name) || list[before..].iter().any(|c| c.name == *name);
            taken.then(|| {
                "a cluster of this name is there already; accepted: another name, or MERGE"
                    .to_owned()
            })
        },
    );
    run.finish(report);
    out
}

fn apply(cluster: &mut Cluster, patch: &Patch) -> Result<Effect, String> {
    match (patch.operation, &patch.value) {
        (Operation::Remove, _) => Ok(Effect::Removed),
        (Operation::Merge, Some(value)) => {
            *cluster = merged(cluster, value)?;
            choose_protocol(cluster)?;
            Ok(Effect::Changed)
        }
        _ => Ok(Effect::Nothing),
    }
}

/// HTTP options must say which protocol they are for once they are there; a cluster that had none speaks HTTP/1.1.
fn choose_protocol(cluster: &mut Cluster) -> Result<(), String> {
    let options = cluster.typed_extension_protocol_options.values_mut();
    let message = HttpProtocolOptions::full_name();
    for any in options.filter(|any| any.type_url.ends_with(&message)) {
        let mut options = HttpProtocolOptions::decode(&*any.value).map_err(|e| e.to_string())?;
        if options.upstream_protocol_options.is_none() {
            let config = ExplicitHttpConfig {
                protocol_config: Some(ProtocolConfig::HttpProtocolOptions(Default::default())),
            };
            options.upstream_protocol_options =
                Some(UpstreamProtocolOptions::ExplicitHttpConfig(config));
            *any = envoy::any(&options);
        }
    }
    Ok(())
}
