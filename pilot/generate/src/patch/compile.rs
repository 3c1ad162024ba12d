//! An EnvoyFilter made ready for use.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use mesh_config::{Meta, Object, envoy_patch};
use prost::Message as _;
use proto_envoy::{DynamicMessage, ReflectMessage as _, canonical};
use proto_networking::networking::{
    EnvoyFilter,
    envoy_filter::{
        ApplyTo, EnvoyConfigObjectPatch, PatchContext, ProxyMatch,
        envoy_config_object_match::ObjectTypes, patch::Operation,
    },
};
use regex::{Regex, RegexBuilder};

use super::{
    Side,
    condition::{ClusterCondition, ListenerCondition, RouteCondition},
    deprecated,
};
use crate::{
    model::{Labels, Proxy, ProxyKind, selects},
    report::{Rejection, Rejector},
};

/// What is done about a patch that cannot be used.
pub(super) const LEFT_OUT: &str = "the patch is not used";
/// Bound on the memory of one compiled `proxyVersion`.
const MAX_REGEX: usize = 1 << 20;

/// An EnvoyFilter, checked.
#[derive(Debug)]
pub struct EnvoyFilterConfig {
    /// Metadata of the object.
    pub meta: Arc<Meta>,
    /// The object's content, to recognise that it did not change.
    pub spec: Arc<EnvoyFilter>,
    /// What could not be used.
    pub rejections: Vec<Rejection>,
    /// Tells contents apart, in whatever snapshot.
    pub(super) identity: [u64; 2],
    pub(super) patches: Vec<Patch>,
    selector: Labels,
}

/// One patch.
#[derive(Debug)]
pub(super) struct Patch {
    /// Where it stands: `configPatches[3]`.
    pub(super) field: String,
    pub(super) apply_to: ApplyTo,
    pub(super) operation: Operation,
    pub(super) listener: ListenerCondition,
    pub(super) route: RouteCondition,
    pub(super) cluster: ClusterCondition,
    /// What it adds or merges; nothing for REMOVE.
    pub(super) value: Option<DynamicMessage>,
    pub(super) context: PatchContext,
    pub(super) version: Option<Regex>,
    pub(super) metadata: Vec<(String, String)>,
}

impl EnvoyFilterConfig {
    /// Checks an object.
    pub fn compile(object: &Object<EnvoyFilter>) -> EnvoyFilterConfig {
        let (meta, spec) = (&object.meta, &object.spec);
        let mut rejections = Vec::new();
        let mut rejector = Rejector {
            kind: "EnvoyFilter",
            namespace: meta.namespace.as_str().into(),
            name: meta.name.as_str().into(),
            out: &mut rejections,
        };
        let mut patches = Vec::new();
        if let Some((field, reason)) = envoy_patch::too_large(spec) {
            rejector.reject(field, reason, "no patch of this EnvoyFilter is used");
        } else {
            for (i, patch) in spec.config_patches.iter().enumerate() {
                patches.extend(Patch::compile(
                    patch,
                    format!("configPatches[{i}]"),
                    &mut rejector,
                ));
            }
            for (i, filter) in spec.filters.iter().enumerate() {
                patches.extend(deprecated::compile(
                    filter,
                    format!("filters[{i}]"),
                    &mut rejector,
                ));
            }
        }
        let selector: Labels = match &spec.workload_selector {
            Some(selector) => selector.labels.clone().into_iter().collect(),
            None => spec.workload_labels.clone().into_iter().collect(),
        };
        let identity = [0, 1].map(|seed| {
            let mut hasher = DefaultHasher::new();
            (seed, &meta.namespace, &meta.name).hash(&mut hasher);
            (meta.creation_timestamp.to_string(), &selector).hash(&mut hasher);
            patches.iter().for_each(|patch| patch.hash(&mut hasher));
            hasher.finish()
        });
        EnvoyFilterConfig {
            meta: meta.clone(),
            spec: spec.clone(),
            rejections,
            identity,
            patches,
            selector,
        }
    }

    /// Whether it is for workloads with these labels; the namespace is the caller's to compare.
    pub(super) fn selects(&self, labels: &Labels) -> bool {
        selects(&self.selector, labels)
    }
}

impl Patch {
    fn compile(
        patch: &EnvoyConfigObjectPatch,
        field: String,
        rejector: &mut Rejector<'_>,
    ) -> Option<Patch> {
        let mut reject = |at: &str, reason: String| {
            let at = if at.is_empty() {
                field.clone()
            } else {
                format!("{field}.{at}")
            };
            rejector.reject(at, reason, LEFT_OUT);
            None
        };
        let apply_to = patch.apply_to();
        if apply_to == ApplyTo::Invalid {
            return reject("applyTo", "is missing or unknown".to_owned());
        }
        let Some(body) = &patch.patch else {
            return reject("patch", "is missing".to_owned());
        };
        let operation = body.operation();
        if operation == Operation::Invalid {
            return reject("patch.operation", "is missing or unknown".to_owned());
        }
        if let Some(accepted) = envoy_patch::misplaced(apply_to, operation) {
            let (operation, target) = (operation.as_str_name(), apply_to.as_str_name());
            let reason = format!("{operation} is not for {target}; accepted: {accepted}");
            return reject("patch.operation", reason);
        }
        let condition = patch.r#match.clone().unwrap_or_default();
        let (version, metadata) = match proxy(condition.proxy.as_ref()) {
            Ok(proxy) => proxy,
            Err(reason) => return reject("match.proxy.proxyVersion", reason),
        };
        let (mut listener, mut route, mut cluster) = Default::default();
        let wanted = match apply_to {
            ApplyTo::Cluster => "cluster",
            ApplyTo::RouteConfiguration | ApplyTo::VirtualHost | ApplyTo::HttpRoute => {
                "routeConfiguration"
            }
            _ => "listener",
        };
        let given = match &condition.object_types {
            None => wanted,
            Some(ObjectTypes::Listener(m)) => {
                listener = ListenerCondition::compile(m);
                "listener"
            }
            Some(ObjectTypes::RouteConfiguration(m)) => {
                route = RouteCondition::compile(m);
                "routeConfiguration"
            }
            Some(ObjectTypes::Cluster(m)) => {
                cluster = ClusterCondition::compile(m);
                "cluster"
            }
        };
        if given != wanted {
            let reason = format!(
                "does not fit {}; accepted: {wanted}",
                apply_to.as_str_name()
            );
            return reject(&format!("match.{given}"), reason);
        }
        let value = match (&body.value, operation) {
            (_, Operation::Remove) => None,
            (None, _) => return reject("patch.value", "is missing".to_owned()),
            (Some(value), _) => match envoy_patch::value(apply_to, operation, value) {
                Ok(value) => Some(value),
                Err(error) => {
                    let path = error.path.to_string();
                    let dot = if path.is_empty() || path.starts_with('[') {
                        ""
                    } else {
                        "."
                    };
                    let mut reason = error.message;
                    if let Some(accepted) = error.accepted {
                        reason = format!("{reason}; accepted: {accepted}");
                    }
                    return reject(&format!("patch.value{dot}{path}"), reason);
                }
            },
        };
        let compiled = Patch {
            field: field.clone(),
            apply_to,
            operation,
            listener,
            route,
            cluster,
            value,
            context: condition.context(),
            version,
            metadata,
        };
        match compiled.target_missing() {
            Some((at, reason)) => reject(at, reason),
            None => Some(compiled),
        }
    }

    /// Filters are found by what the match names, or by what the value is; something must say which is meant.
    fn target_missing(&self) -> Option<(&'static str, String)> {
        const FILTER: &str = "match.listener.filterChain.filter";
        let named = match self.apply_to {
            ApplyTo::HttpFilter => self.listener.sub_filter.is_some(),
            ApplyTo::NetworkFilter => self.listener.filter.is_some(),
            _ => return None,
        };
        let filled = |field: &str| {
            self.value.as_ref().is_some_and(|value| {
                let field = value.descriptor().get_field_by_name(field);
                field.is_some_and(|field| value.has_field(&field))
            })
        };
        let known = match self.operation {
            Operation::Remove | Operation::Replace => named,
            Operation::Merge => named || filled("typed_config") || filled("name"),
            _ => true,
        };
        let (at, what) = match self.apply_to {
            ApplyTo::HttpFilter => (FILTER, "subFilter.name, the HTTP filter to change"),
            _ => (FILTER, "name, the network filter to change"),
        };
        (!known).then(|| {
            (
                at,
                format!("does not say which filter is meant; accepted: {what}"),
            )
        })
    }

    /// Whether it is for this proxy, labels and namespace aside.
    pub(super) fn applies_to(&self, proxy: &Proxy) -> bool {
        let kind = match self.context {
            PatchContext::Any => true,
            PatchContext::Gateway => proxy.kind == ProxyKind::Router,
            PatchContext::SidecarInbound | PatchContext::SidecarOutbound => {
                proxy.kind == ProxyKind::Sidecar
            }
        };
        let told = |key: &str| proxy.metadata.get(key);
        let version = || match &self.version {
            None => true,
            // Who does not tell its version cannot be told to match.
            Some(regex) => told("ISTIO_VERSION").is_some_and(|v| regex.is_match(v)),
        };
        kind && version() && self.metadata.iter().all(|(k, v)| told(k) == Some(v))
    }

    /// Whether it is for resources of this side.
    pub(super) fn is_for(&self, side: Side) -> bool {
        match self.context {
            PatchContext::Any => true,
            PatchContext::SidecarInbound => side == Side::Inbound,
            PatchContext::SidecarOutbound => side == Side::Outbound,
            PatchContext::Gateway => side == Side::Gateway,
        }
    }

    /// Whether what it adds to the list of resources is to be added on this side: once per proxy, even if for any side.
    pub(super) fn adds_on(&self, side: Side) -> bool {
        match self.context {
            PatchContext::Any => side != Side::Inbound,
            _ => self.is_for(side),
        }
    }

    /// Whether it adds something, rather than changing what is there.
    pub(super) fn is_addition(&self) -> bool {
        !matches!(
            self.operation,
            Operation::Merge | Operation::Remove | Operation::Replace
        )
    }
}

/// Equal patches hash equally, in every process: values by their canonical bytes.
impl Hash for Patch {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.field, self.apply_to as i32, self.operation as i32).hash(state);
        (&self.listener, &self.route, &self.cluster).hash(state);
        (
            self.context as i32,
            self.version.as_ref().map(Regex::as_str),
        )
            .hash(state);
        self.metadata.hash(state);
        if let Some(value) = &self.value {
            let name = value.descriptor().full_name().to_owned();
            canonical(&name, &value.encode_to_vec())
                .unwrap_or_default()
                .hash(state);
        }
    }
}

type ProxyCondition = (Option<Regex>, Vec<(String, String)>);

fn proxy(condition: Option<&ProxyMatch>) -> Result<ProxyCondition, String> {
    let Some(condition) = condition else {
        return Ok(ProxyCondition::default());
    };
    let version = match condition.proxy_version.as_str() {
        "" => None,
        pattern => {
            let built = RegexBuilder::new(pattern).size_limit(MAX_REGEX).build();
            Some(built.map_err(|error| {
                let last = error.to_string();
                let last = last.lines().last().unwrap_or_default().to_owned();
                format!("{pattern:?} is no regular expression: {last}")
            })?)
        }
    };
    let metadata = &condition.metadata;
    Ok((
        version,
        metadata
            .iter()
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect(),
    ))
}
