//! Config objects, compiled; those that did not change are taken over from the previous snapshot.

use std::{borrow::Cow, sync::Arc};

use ahash::AHashMap;
use mesh_config::{Configs, Meta, Object};

use super::{
    Settings, rules::RuleIndex, sidecars::SidecarIndex, virtual_services::VirtualServiceIndex,
};
use crate::{
    compile::{Context, DestinationRuleConfig, GatewayConfig, SidecarConfig, VirtualServiceConfig},
    patch::{EnvoyFilterConfig, FilterIndex},
    registry::{
        ingress,
        service_entry::{self, Converted},
    },
    report::{Rejection, Report},
};

/// Everything made from config objects alone.
#[derive(Clone, Debug, Default)]
pub struct ConfigIndex {
    /// The oldest first.
    pub virtual_services: Vec<Arc<VirtualServiceConfig>>,
    /// By host and client.
    pub rules: RuleIndex,
    /// The oldest first.
    pub gateways: Vec<Arc<GatewayConfig>>,
    /// Some rule asks for mesh mTLS: then clusters name the service accounts of their endpoints.
    pub(super) names_accounts: bool,
    /// By the workloads they are for.
    pub sidecars: SidecarIndex,
    /// By namespace.
    pub envoy_filters: FilterIndex,
    pub(super) virtual_service_index: VirtualServiceIndex,
    pub(super) sidecar_configs: Vec<Arc<SidecarConfig>>,
    pub(super) destination_rules: Vec<Arc<DestinationRuleConfig>>,
    pub(super) service_entries: Vec<Arc<Converted>>,
    pub(super) report: Report,
}

impl ConfigIndex {
    pub(super) fn new(
        configs: &Configs,
        settings: &Settings,
        previous: Option<&ConfigIndex>,
    ) -> ConfigIndex {
        let context = &settings.compile;
        let mut report = Report::default();
        let mut orphaned: Vec<Rejection> = Vec::new();

        let converted = ingress::convert(&configs.ingresses, &context.ingress);
        report.rejections.extend(converted.rejections);
        let virtual_services = take_over(
            &joined(&configs.virtual_services, converted.virtual_services),
            previous.map(|p| p.virtual_services.as_slice()),
            |object| Some(VirtualServiceConfig::compile(object, context)),
        );
        let destination_rules = take_over(
            &configs.destination_rules,
            previous.map(|p| p.destination_rules.as_slice()),
            |object| DestinationRuleConfig::compile(object, context, &mut orphaned),
        );
        let gateways = take_over(
            &joined(&configs.gateways, converted.gateways),
            previous.map(|p| p.gateways.as_slice()),
            |object| Some(GatewayConfig::compile(object)),
        );
        let sidecar_configs = take_over(
            &configs.sidecars,
            previous.map(|p| p.sidecar_configs.as_slice()),
            |object| Some(SidecarConfig::compile(object)),
        );
        let service_entries = take_over(
            &configs.service_entries,
            previous.map(|p| p.service_entries.as_slice()),
            |object| Some(service_entry::convert(object, context)),
        );
        let envoy_filters = take_over(
            &configs.envoy_filters,
            previous.map(|p| p.envoy_filters.all()),
            |object| Some(EnvoyFilterConfig::compile(object)),
        );

        report.rejections.extend(
            virtual_services
                .iter()
                .flat_map(|v| v.rejections.iter().cloned()),
        );
        report.rejections.extend(
            destination_rules
                .iter()
                .flat_map(|v| v.rejections.iter().cloned()),
        );
        report
            .rejections
            .extend(gateways.iter().flat_map(|v| v.rejections.iter().cloned()));
        report.rejections.extend(
            sidecar_configs
                .iter()
                .flat_map(|v| v.rejections.iter().cloned()),
        );
        report.rejections.extend(
            service_entries
                .iter()
                .flat_map(|v| v.rejections.iter().cloned()),
        );
        report.rejections.extend(
            envoy_filters
                .iter()
                .flat_map(|f| f.rejections.iter().cloned()),
        );
        report.rejections.append(&mut orphaned);
        let sidecars = SidecarIndex::new(
            &sidecar_configs,
            settings.root_namespace.clone(),
            &mut report,
        );
        report.rejections.sort();

        let rules = RuleIndex::new(
            &destination_rules,
            settings.root_namespace.clone(),
            previous.map(|p| &p.rules),
            &mut report,
        );
        ConfigIndex {
            virtual_service_index: VirtualServiceIndex::new(&virtual_services),
            virtual_services,
            rules,
            gateways,
            names_accounts: destination_rules.iter().any(|r| r.uses_mesh_tls()),
            sidecars,
            envoy_filters: FilterIndex::new(envoy_filters),
            sidecar_configs,
            destination_rules,
            service_entries,
            report,
        }
    }
}

/// Objects of the user and others made from something else, in order of age.
fn joined<S>(own: &[Object<S>], others: Vec<Object<S>>) -> Cow<'_, [Object<S>]> {
    if others.is_empty() {
        return Cow::Borrowed(own);
    }
    let mut all = [own, &others].concat();
    all.sort_by(|a, b| a.meta.age_order(&b.meta));
    Cow::Owned(all)
}

/// A compiled form that remembers what it was made of.
trait Compiled {
    type Spec: PartialEq;
    fn meta(&self) -> &Arc<Meta>;
    fn spec(&self) -> &Arc<Self::Spec>;
}

macro_rules! compiled {
    ($($type:ty => $spec:ty),*) => { $(
        impl Compiled for $type {
            type Spec = $spec;
            fn meta(&self) -> &Arc<Meta> { &self.meta }
            fn spec(&self) -> &Arc<$spec> { &self.spec }
        }
    )* };
}

compiled! {
    VirtualServiceConfig => proto_networking::networking::VirtualService,
    DestinationRuleConfig => proto_networking::networking::DestinationRule,
    GatewayConfig => proto_networking::networking::Gateway,
    SidecarConfig => proto_networking::networking::Sidecar,
    Converted => proto_networking::networking::ServiceEntry,
    EnvoyFilterConfig => proto_networking::networking::EnvoyFilter
}

/// Compiles what is new; what has the same content as before keeps its identity.
fn take_over<C: Compiled>(
    objects: &[Object<C::Spec>],
    previous: Option<&[Arc<C>]>,
    mut compile: impl FnMut(&Object<C::Spec>) -> Option<C>,
) -> Vec<Arc<C>> {
    let before: AHashMap<(&str, &str), &Arc<C>> = previous
        .unwrap_or_default()
        .iter()
        .map(|c| ((c.meta().namespace.as_str(), c.meta().name.as_str()), c))
        .collect();
    objects
        .iter()
        .filter_map(|object| {
            let key = (object.meta.namespace.as_str(), object.meta.name.as_str());
            let same = before.get(&key).filter(|c| {
                c.meta().creation_timestamp == object.meta.creation_timestamp
                    && (Arc::ptr_eq(c.spec(), &object.spec) || **c.spec() == *object.spec)
            });
            match same {
                Some(compiled) => Some(Arc::clone(compiled)),
                None => compile(object).map(Arc::new),
            }
        })
        .collect()
}

impl Context {
    /// Whether objects compiled with the other context can be kept.
    pub(super) fn keeps(&self, other: &Context) -> bool {
        self == other
    }
}
