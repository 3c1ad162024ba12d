//! The table of config kinds, and everything that has one entry per kind.
//!
//! One macro call at the end lists the kinds; from it come the marker types (for code that knows the kind),
//! [`ConfigKind`] (for code that learns it at run time), [`TypedObject`] (an object of any kind) and the fields of
//! [`Configs`](crate::Configs). Adding a kind is adding a line.

use std::fmt;
use std::sync::Arc;

use proto_mixer::client;
use proto_networking::{authentication, networking, rbac, security};
use serde::de::DeserializeOwned;

use crate::meta::{Meta, Object};

/// Whether objects of a kind live in a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// They do.
    Namespaced,
    /// One for the cluster; the namespace of the object is empty.
    Cluster,
}

/// A config kind known at compile time. Implemented by the marker types of [`kinds`].
pub trait Kind: Copy + Send + Sync + 'static {
    /// API group, such as `networking.istio.io`.
    const GROUP: &'static str;
    /// Version of the group.
    const VERSION: &'static str;
    /// Kind as in a manifest.
    const KIND: &'static str;
    /// Plural as in an API path.
    const PLURAL: &'static str;
    /// Namespaced or not.
    const SCOPE: Scope;
    /// The same kind as a value.
    const CONFIG_KIND: ConfigKind;
    /// The message under `spec`.
    type Spec: DeserializeOwned
        + serde::Serialize
        + PartialEq
        + Default
        + fmt::Debug
        + Send
        + Sync
        + 'static;

    /// The objects of this kind in a snapshot.
    fn list(configs: &crate::Configs) -> &[Object<Self::Spec>];
}

macro_rules! kinds {
    ($( $(#[$doc:meta])* $kind:ident / $field:ident, $group:literal, $version:literal, $plural:literal, $scope:ident, $spec:ty; )*) => {
        /// A marker type for each kind; see [`Kind`].
        pub mod kinds {
            $(
                $(#[$doc])*
                #[derive(Debug, Clone, Copy, PartialEq, Eq)]
                pub struct $kind;
            )*
        }

        $(
            impl Kind for kinds::$kind {
                const GROUP: &'static str = $group;
                const VERSION: &'static str = $version;
                const KIND: &'static str = stringify!($kind);
                const PLURAL: &'static str = $plural;
                const SCOPE: Scope = Scope::$scope;
                const CONFIG_KIND: ConfigKind = ConfigKind::$kind;
                type Spec = $spec;

                fn list(configs: &crate::Configs) -> &[Object<$spec>] {
                    &configs.$field
                }
            }
        )*

        /// A config kind as a value.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum ConfigKind {
            $( $(#[$doc])* $kind, )*
        }

        impl ConfigKind {
            /// Every kind, in the order of the table.
            pub const ALL: &'static [Self] = &[ $( Self::$kind, )* ];

            /// API group, such as `networking.istio.io`.
            pub const fn group(self) -> &'static str {
                match self { $( Self::$kind => $group, )* }
            }

            /// Version of the group.
            pub const fn version(self) -> &'static str {
                match self { $( Self::$kind => $version, )* }
            }

            /// Kind as in a manifest.
            pub const fn kind(self) -> &'static str {
                match self { $( Self::$kind => stringify!($kind), )* }
            }

            /// Plural as in an API path.
            pub const fn plural(self) -> &'static str {
                match self { $( Self::$kind => $plural, )* }
            }

            /// Namespaced or not.
            pub const fn scope(self) -> Scope {
                match self { $( Self::$kind => Scope::$scope, )* }
            }
        }

        /// An object of any kind.
        #[derive(Debug, Clone, PartialEq)]
        pub enum TypedObject {
            $( $(#[$doc])* $kind(Object<$spec>), )*
        }

        impl TypedObject {
            /// Which kind it is.
            pub const fn kind(&self) -> ConfigKind {
                match self { $( Self::$kind(_) => ConfigKind::$kind, )* }
            }

            /// Its metadata.
            pub fn meta(&self) -> &Arc<Meta> {
                match self { $( Self::$kind(o) => &o.meta, )* }
            }

            /// The spec in proto3 JSON.
            pub fn spec_json(&self) -> Result<serde_json::Value, serde_json::Error> {
                match self { $( Self::$kind(o) => serde_json::to_value(&*o.spec), )* }
            }

            /// Whether the specs are equal.
            pub(crate) fn same_spec(&self, other: &Self) -> bool {
                match (self, other) {
                    $( (Self::$kind(a), Self::$kind(b)) => Arc::ptr_eq(&a.spec, &b.spec) || a.spec == b.spec, )*
                    _ => false,
                }
            }

            /// Reads the spec of `kind`.
            pub(crate) fn read(
                kind: ConfigKind,
                meta: Meta,
                spec: serde_json::Value,
            ) -> Result<Self, serde_path_to_error::Error<serde_json::Error>> {
                let meta = Arc::new(meta);
                Ok(match kind {
                    $( ConfigKind::$kind => {
                        let spec: $spec = serde_path_to_error::deserialize(spec)?;
                        Self::$kind(Object { meta, spec: Arc::new(spec) })
                    } )*
                })
            }
        }

        /// All config of the mesh at one moment: one list per kind, immutable once published.
        ///
        /// Lists sort by creation time, then by `NAME.NAMESPACE`, so that "the oldest wins" is "the first wins".
        /// Built by [`Store`](crate::Store); objects are shared between snapshots.
        #[derive(Debug, Clone, Default, PartialEq)]
        pub struct Configs {
            $( $(#[$doc])* pub $field: Vec<Object<$spec>>, )*
        }

        impl Configs {
            /// How many objects there are.
            pub fn len(&self) -> usize {
                0 $( + self.$field.len() )*
            }

            /// Every object.
            pub fn iter(&self) -> impl Iterator<Item = TypedObject> + '_ {
                std::iter::empty()
                    $( .chain(self.$field.iter().map(|o| TypedObject::$kind(o.clone()))) )*
            }

            /// Replaces the list of a kind; objects of other kinds are left out.
            pub(crate) fn set_kind(&mut self, kind: ConfigKind, objects: impl Iterator<Item = TypedObject>) {
                match kind {
                    $( ConfigKind::$kind => {
                        self.$field = objects
                            .filter_map(|o| match o { TypedObject::$kind(o) => Some(o), _ => None })
                            .collect();
                        self.$field.sort_by(|a, b| a.meta.age_order(&b.meta));
                    } )*
                }
            }
        }
    };
}

kinds! {
    /// Routes of hosts.
    VirtualService / virtual_services, "networking.istio.io", "v1alpha3", "virtualservices", Namespaced, networking::VirtualService;
    /// Subsets and traffic policies of hosts.
    DestinationRule / destination_rules, "networking.istio.io", "v1alpha3", "destinationrules", Namespaced, networking::DestinationRule;
    /// Services outside the platform's registry.
    ServiceEntry / service_entries, "networking.istio.io", "v1alpha3", "serviceentries", Namespaced, networking::ServiceEntry;
    /// Load balancers at the edge of the mesh.
    Gateway / gateways, "networking.istio.io", "v1alpha3", "gateways", Namespaced, networking::Gateway;
    /// What sidecars accept and can reach.
    Sidecar / sidecars, "networking.istio.io", "v1alpha3", "sidecars", Namespaced, networking::Sidecar;
    /// Patches to generated Envoy config.
    EnvoyFilter / envoy_filters, "networking.istio.io", "v1alpha3", "envoyfilters", Namespaced, networking::EnvoyFilter;
    /// Authentication of callers of a service.
    Policy / policies, "authentication.istio.io", "v1alpha1", "policies", Namespaced, authentication::Policy;
    /// Authentication for the whole mesh.
    MeshPolicy / mesh_policies, "authentication.istio.io", "v1alpha1", "meshpolicies", Cluster, authentication::Policy;
    /// Permissions.
    ServiceRole / service_roles, "rbac.istio.io", "v1alpha1", "serviceroles", Namespaced, rbac::ServiceRole;
    /// Who has which permissions.
    ServiceRoleBinding / service_role_bindings, "rbac.istio.io", "v1alpha1", "servicerolebindings", Namespaced, rbac::ServiceRoleBinding;
    /// Where role-based access control applies; superseded by ClusterRbacConfig.
    RbacConfig / rbac_configs, "rbac.istio.io", "v1alpha1", "rbacconfigs", Namespaced, rbac::RbacConfig;
    /// Where role-based access control applies.
    ClusterRbacConfig / cluster_rbac_configs, "rbac.istio.io", "v1alpha1", "clusterrbacconfigs", Cluster, rbac::RbacConfig;
    /// Allow rules for workloads.
    AuthorizationPolicy / authorization_policies, "security.istio.io", "v1beta1", "authorizationpolicies", Namespaced, security::AuthorizationPolicy;
    /// Attributes of requests by method and path.
    HTTPAPISpec / http_api_specs, "config.istio.io", "v1alpha2", "httpapispecs", Namespaced, client::HttpapiSpec;
    /// Which services have which API specs.
    HTTPAPISpecBinding / http_api_spec_bindings, "config.istio.io", "v1alpha2", "httpapispecbindings", Namespaced, client::HttpapiSpecBinding;
    /// Quotas that requests are charged for.
    QuotaSpec / quota_specs, "config.istio.io", "v1alpha2", "quotaspecs", Namespaced, client::QuotaSpec;
    /// Which services have which quota specs.
    QuotaSpecBinding / quota_spec_bindings, "config.istio.io", "v1alpha2", "quotaspecbindings", Namespaced, client::QuotaSpecBinding;
    /// Kubernetes' own routes into the cluster.
    Ingress / ingresses, "networking.k8s.io", "v1", "ingresses", Namespaced, crate::ingress::IngressSpec;
}

impl ConfigKind {
    /// `group/version` as in a manifest.
    pub fn api_version(self) -> String {
        format!("{}/{}", self.group(), self.version())
    }

    /// Groups and versions that older clusters know the kind by, the newest first. Their specs are read alike.
    pub const fn older_versions(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Ingress => &[("networking.k8s.io", "v1beta1"), ("extensions", "v1beta1")],
            _ => &[],
        }
    }

    /// Whether the kind is the mesh's, not the platform's.
    pub const fn is_of_the_mesh(self) -> bool {
        !matches!(self, Self::Ingress)
    }

    /// The kind of a manifest's `kind`, whatever its version, if the group is ours.
    pub fn find(group: &str, kind: &str) -> Option<Self> {
        let has_group = |k: Self| {
            k.group() == group || k.older_versions().iter().any(|(older, _)| *older == group)
        };
        let mut all = Self::ALL.iter().copied();
        all.find(|k| k.kind() == kind && has_group(*k))
    }

    /// Whether a kind of the mesh has this API group.
    pub fn is_our_group(group: &str) -> bool {
        Self::ALL
            .iter()
            .any(|k| k.is_of_the_mesh() && k.group() == group)
    }

    /// The name as Istio's schemas write it: `virtual-service`, `http-api-spec`.
    pub fn schema_name(self) -> String {
        // HTTPAPISpec does not follow the rule of one capital per word.
        let kind = self.kind().replace("HTTPAPI", "HttpApi");
        let mut name = String::with_capacity(kind.len() + 4);
        for c in kind.chars() {
            if c.is_ascii_uppercase() && !name.is_empty() {
                name.push('-');
            }
            name.push(c.to_ascii_lowercase());
        }
        name
    }
}

impl fmt::Display for ConfigKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind())
    }
}

impl Configs {
    /// A snapshot of these objects; of several with the same kind and name the last stays.
    pub fn from_objects(objects: impl IntoIterator<Item = TypedObject>) -> Self {
        let mut store = crate::Store::new();
        for object in objects {
            store.apply(object);
        }
        (*store.snapshot().0).clone()
    }

    /// Whether there is nothing at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The objects of a kind.
    pub fn list<K: Kind>(&self) -> &[Object<K::Spec>] {
        K::list(self)
    }

    /// One object by name.
    pub fn get<K: Kind>(&self, namespace: &str, name: &str) -> Option<&Object<K::Spec>> {
        K::list(self)
            .iter()
            .find(|o| o.meta.name == name && o.meta.namespace == namespace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schema_names_are_istios() {
        let names: Vec<_> = ConfigKind::ALL.iter().map(|k| k.schema_name()).collect();
        assert_eq!(
            names,
            [
                "virtual-service",
                "destination-rule",
                "service-entry",
                "gateway",
                "sidecar",
                "envoy-filter",
                "policy",
                "mesh-policy",
                "service-role",
                "service-role-binding",
                "rbac-config",
                "cluster-rbac-config",
                "authorization-policy",
                "http-api-spec",
                "http-api-spec-binding",
                "quota-spec",
                "quota-spec-binding",
                "ingress",
            ]
        );
    }

    #[test]
    fn kinds_are_found_by_group() {
        assert_eq!(
            ConfigKind::find("networking.istio.io", "Gateway"),
            Some(ConfigKind::Gateway)
        );
        assert_eq!(
            ConfigKind::find("gateway.networking.k8s.io", "Gateway"),
            None
        );
        assert_eq!(
            <kinds::Gateway as Kind>::CONFIG_KIND.api_version(),
            "networking.istio.io/v1alpha3"
        );
    }
}
