//! The built-in resources. Facts per kind: names, scope, subresources, versions, typed check.

use k8s_openapi::api;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;

use super::{ALL_VERBS, Resource, STATUS_VERBS, ScalePaths, Subresource, Version, qualify};
use crate::store::Store;
use crate::typed::{Check, check};

const POD_FIELDS: &[&str] = &[
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.schedulerName",
    "spec.serviceAccountName",
    "spec.hostNetwork",
    "status.phase",
    "status.podIP",
    "status.podIPs",
    "status.nominatedNodeName",
];
const EVENT_FIELDS: &[&str] = &[
    "involvedObject.kind",
    "involvedObject.namespace",
    "involvedObject.name",
    "involvedObject.uid",
    "involvedObject.apiVersion",
    "involvedObject.resourceVersion",
    "involvedObject.fieldPath",
    "reason",
    "reportingComponent",
    "source",
    "type",
];

/// Starts the description of a resource of one group.
struct Group<'a> {
    store: &'a Store,
    name: &'static str,
    version: &'static str,
    out: Vec<Resource>,
}

impl Group<'_> {
    fn add(&mut self, kind: &str, plural: &str, check: Check) -> Builder<'_> {
        let version = Version {
            name: self.version.to_owned(),
            check: Some(check),
            schema: None,
            columns: Vec::new(),
            status: false,
            scale: None,
            deprecated: None,
        };
        self.out.push(Resource {
            group: self.name.to_owned(),
            plural: plural.to_owned(),
            singular: kind.to_lowercase(),
            kind: kind.to_owned(),
            list_kind: format!("{kind}List"),
            short_names: Vec::new(),
            categories: Vec::new(),
            namespaced: true,
            versions: vec![version],
            storage: self.version.to_owned(),
            subresources: Vec::new(),
            generation: false,
            field_labels: &[],
            custom: false,
            verbs: ALL_VERBS,
            collection: Some(self.store.collection(&qualify(plural, self.name))),
        });
        let last = self.out.len() - 1;
        Builder(&mut self.out[last])
    }
}

struct Builder<'a>(&'a mut Resource);

impl Builder<'_> {
    fn cluster(self) -> Self {
        self.0.namespaced = false;
        self
    }

    fn short(self, names: &[&str]) -> Self {
        self.0.short_names = names.iter().map(|s| (*s).to_owned()).collect();
        self
    }

    fn category(self, name: &str) -> Self {
        self.0.categories.push(name.to_owned());
        self
    }

    fn status(self) -> Self {
        self.0.versions.iter_mut().for_each(|v| v.status = true);
        let kind = self.0.kind.clone();
        self.0.subresources.push(Subresource {
            name: "status",
            group: "",
            version: "",
            kind,
            verbs: STATUS_VERBS,
        });
        self
    }

    fn spec(self) -> Self {
        self.0.generation = true;
        self
    }

    fn scale(self) -> Self {
        let path = |s: &[&str]| s.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        for version in &mut self.0.versions {
            version.scale = Some(ScalePaths {
                spec: path(&["spec", "replicas"]),
                status: path(&["status", "replicas"]),
                selector: Some(path(&["spec", "selector"])),
            });
        }
        self.sub("scale", "autoscaling", "v1", "Scale", STATUS_VERBS)
    }

    fn sub(
        self,
        name: &'static str,
        group: &'static str,
        version: &'static str,
        kind: &str,
        verbs: &'static [&'static str],
    ) -> Self {
        self.0.subresources.push(Subresource {
            name,
            group,
            version,
            kind: kind.to_owned(),
            verbs,
        });
        self
    }

    fn fields(self, labels: &'static [&'static str]) -> Self {
        self.0.field_labels = labels;
        self
    }

    /// Only `create`, nothing stored.
    fn review(self) -> Self {
        self.0.verbs = &["create"];
        self.0.collection = None;
        self
    }

    fn also(self, version: &str, check: Check, deprecated: Option<&str>) -> Self {
        let mut copy = self.0.versions[0].clone();
        copy.name = version.to_owned();
        copy.check = Some(check);
        copy.deprecated = deprecated.map(str::to_owned);
        self.0.versions.push(copy);
        self
    }
}

/// All built-in resources, in discovery's order of groups.
pub(super) fn all(store: &Store) -> Vec<Resource> {
    let mut out = core(store);
    out.extend(apps_and_batch(store));
    out.extend(security(store));
    out.extend(cluster_services(store));
    out
}

fn group<'a>(store: &'a Store, name: &'static str, version: &'static str) -> Group<'a> {
    Group {
        store,
        name,
        version,
        out: Vec::new(),
    }
}

fn core(store: &Store) -> Vec<Resource> {
    use api::core::v1 as t;
    let mut g = group(store, "", "v1");
    g.add("Binding", "bindings", check::<t::Binding>).review();
    g.add("ConfigMap", "configmaps", check::<t::ConfigMap>)
        .short(&["cm"]);
    g.add("Endpoints", "endpoints", check::<t::Endpoints>)
        .short(&["ep"]);
    g.add("Event", "events", check::<t::Event>)
        .short(&["ev"])
        .fields(EVENT_FIELDS);
    g.add("LimitRange", "limitranges", check::<t::LimitRange>)
        .short(&["limits"]);
    g.add("Namespace", "namespaces", check::<t::Namespace>)
        .cluster()
        .short(&["ns"])
        .sub("finalize", "", "", "Namespace", &["update"])
        .status()
        .fields(&["status.phase"]);
    g.add("Node", "nodes", check::<t::Node>)
        .cluster()
        .short(&["no"])
        .status()
        .fields(&["spec.unschedulable"]);
    g.add(
        "PersistentVolumeClaim",
        "persistentvolumeclaims",
        check::<t::PersistentVolumeClaim>,
    )
    .short(&["pvc"])
    .status();
    g.add(
        "PersistentVolume",
        "persistentvolumes",
        check::<t::PersistentVolume>,
    )
    .cluster()
    .short(&["pv"])
    .status();
    g.add("Pod", "pods", check::<t::Pod>)
        .short(&["po"])
        .category("all")
        .fields(POD_FIELDS)
        .sub("attach", "", "", "PodAttachOptions", &["create", "get"])
        .sub("binding", "", "", "Binding", &["create"])
        .sub("eviction", "policy", "v1", "Eviction", &["create"])
        .sub("exec", "", "", "PodExecOptions", &["create", "get"])
        .sub("log", "", "", "Pod", &["get"])
        .sub(
            "portforward",
            "",
            "",
            "PodPortForwardOptions",
            &["create", "get"],
        )
        .status();
    g.add("PodTemplate", "podtemplates", check::<t::PodTemplate>);
    g.add(
        "ReplicationController",
        "replicationcontrollers",
        check::<t::ReplicationController>,
    )
    .short(&["rc"])
    .category("all")
    .spec()
    .scale()
    .status();
    g.add("ResourceQuota", "resourcequotas", check::<t::ResourceQuota>)
        .short(&["quota"])
        .status();
    g.add("Secret", "secrets", check::<t::Secret>)
        .fields(&["type"]);
    g.add(
        "ServiceAccount",
        "serviceaccounts",
        check::<t::ServiceAccount>,
    )
    .short(&["sa"])
    .sub(
        "token",
        "authentication.k8s.io",
        "v1",
        "TokenRequest",
        &["create"],
    );
    g.add("Service", "services", check::<t::Service>)
        .short(&["svc"])
        .category("all")
        .status()
        .fields(&["spec.clusterIP", "spec.type"]);
    g.out
}

fn apps_and_batch(store: &Store) -> Vec<Resource> {
    use api::{apps::v1 as apps, autoscaling as hpa, batch::v1 as batch};
    let mut g = group(store, "apps", "v1");
    g.add(
        "ControllerRevision",
        "controllerrevisions",
        check::<apps::ControllerRevision>,
    );
    g.add("DaemonSet", "daemonsets", check::<apps::DaemonSet>)
        .short(&["ds"])
        .category("all")
        .spec()
        .status();
    g.add("Deployment", "deployments", check::<apps::Deployment>)
        .short(&["deploy"])
        .category("all")
        .spec()
        .scale()
        .status();
    g.add("ReplicaSet", "replicasets", check::<apps::ReplicaSet>)
        .short(&["rs"])
        .category("all")
        .spec()
        .scale()
        .status();
    g.add("StatefulSet", "statefulsets", check::<apps::StatefulSet>)
        .short(&["sts"])
        .category("all")
        .spec()
        .scale()
        .status();
    let mut out = g.out;

    let mut g = group(store, "autoscaling", "v2");
    g.add(
        "HorizontalPodAutoscaler",
        "horizontalpodautoscalers",
        check::<hpa::v2::HorizontalPodAutoscaler>,
    )
    .short(&["hpa"])
    .category("all")
    .also("v1", check::<hpa::v1::HorizontalPodAutoscaler>, None)
    .status();
    out.extend(g.out);

    let mut g = group(store, "batch", "v1");
    g.add("CronJob", "cronjobs", check::<batch::CronJob>)
        .short(&["cj"])
        .category("all")
        .spec()
        .status();
    g.add("Job", "jobs", check::<batch::Job>)
        .category("all")
        .spec()
        .status()
        .fields(&["status.successful"]);
    out.extend(g.out);
    out
}

fn security(store: &Store) -> Vec<Resource> {
    use api::{
        admissionregistration::v1 as adm, authentication::v1 as authn, authorization::v1 as authz,
        rbac::v1 as rbac,
    };
    let mut out = Vec::new();
    let mut g = group(store, "authentication.k8s.io", "v1");
    g.add("TokenReview", "tokenreviews", check::<authn::TokenReview>)
        .cluster()
        .review();
    g.add(
        "SelfSubjectReview",
        "selfsubjectreviews",
        check::<authn::SelfSubjectReview>,
    )
    .cluster()
    .review();
    out.extend(g.out);

    let mut g = group(store, "authorization.k8s.io", "v1");
    g.add(
        "LocalSubjectAccessReview",
        "localsubjectaccessreviews",
        check::<authz::LocalSubjectAccessReview>,
    )
    .review();
    g.add(
        "SelfSubjectAccessReview",
        "selfsubjectaccessreviews",
        check::<authz::SelfSubjectAccessReview>,
    )
    .cluster()
    .review();
    g.add(
        "SelfSubjectRulesReview",
        "selfsubjectrulesreviews",
        check::<authz::SelfSubjectRulesReview>,
    )
    .cluster()
    .review();
    g.add(
        "SubjectAccessReview",
        "subjectaccessreviews",
        check::<authz::SubjectAccessReview>,
    )
    .cluster()
    .review();
    out.extend(g.out);

    let mut g = group(store, "rbac.authorization.k8s.io", "v1");
    g.add(
        "ClusterRoleBinding",
        "clusterrolebindings",
        check::<rbac::ClusterRoleBinding>,
    )
    .cluster();
    g.add("ClusterRole", "clusterroles", check::<rbac::ClusterRole>)
        .cluster();
    g.add("RoleBinding", "rolebindings", check::<rbac::RoleBinding>);
    g.add("Role", "roles", check::<rbac::Role>);
    out.extend(g.out);

    let mut g = group(store, "admissionregistration.k8s.io", "v1");
    let beta = |kind: &str| {
        format!(
            "admissionregistration.k8s.io/v1beta1 {kind} is deprecated in v1.16+, unavailable in v1.22+; use admissionregistration.k8s.io/v1 {kind}"
        )
    };
    g.add(
        "MutatingWebhookConfiguration",
        "mutatingwebhookconfigurations",
        check::<adm::MutatingWebhookConfiguration>,
    )
    .cluster()
    .category("api-extensions")
    .spec()
    .also(
        "v1beta1",
        check::<adm::MutatingWebhookConfiguration>,
        Some(&beta("MutatingWebhookConfiguration")),
    );
    g.add(
        "ValidatingWebhookConfiguration",
        "validatingwebhookconfigurations",
        check::<adm::ValidatingWebhookConfiguration>,
    )
    .cluster()
    .category("api-extensions")
    .spec()
    .also(
        "v1beta1",
        check::<adm::ValidatingWebhookConfiguration>,
        Some(&beta("ValidatingWebhookConfiguration")),
    );
    out.extend(g.out);
    out
}

fn cluster_services(store: &Store) -> Vec<Resource> {
    use api::{
        coordination::v1 as coord, discovery::v1 as disc, events::v1 as ev, networking::v1 as net,
        policy::v1 as pol,
    };
    use api::{scheduling::v1 as sched, storage::v1 as sto};
    let mut out = Vec::new();
    let mut g = group(store, "apiextensions.k8s.io", "v1");
    g.add(
        "CustomResourceDefinition",
        "customresourcedefinitions",
        check::<CustomResourceDefinition>,
    )
    .cluster()
    .short(&["crd", "crds"])
    .category("api-extensions")
    .spec()
    .status();
    out.extend(g.out);

    let mut g = group(store, "coordination.k8s.io", "v1");
    g.add("Lease", "leases", check::<coord::Lease>);
    out.extend(g.out);

    let mut g = group(store, "discovery.k8s.io", "v1");
    g.add(
        "EndpointSlice",
        "endpointslices",
        check::<disc::EndpointSlice>,
    )
    .spec();
    out.extend(g.out);

    let mut g = group(store, "events.k8s.io", "v1");
    g.add("Event", "events", check::<ev::Event>).short(&["ev"]);
    if let Some(events) = g.out.last_mut() {
        // The same objects as core events, seen in another shape.
        events.collection = Some(store.collection("events"));
    }
    out.extend(g.out);

    let mut g = group(store, "networking.k8s.io", "v1");
    g.add("IngressClass", "ingressclasses", check::<net::IngressClass>)
        .cluster()
        .spec();
    g.add("Ingress", "ingresses", check::<net::Ingress>)
        .short(&["ing"])
        .spec()
        .status();
    g.add(
        "NetworkPolicy",
        "networkpolicies",
        check::<net::NetworkPolicy>,
    )
    .short(&["netpol"])
    .spec();
    out.extend(g.out);

    let mut g = group(store, "policy", "v1");
    g.add(
        "PodDisruptionBudget",
        "poddisruptionbudgets",
        check::<pol::PodDisruptionBudget>,
    )
    .short(&["pdb"])
    .spec()
    .status();
    out.extend(g.out);

    let mut g = group(store, "scheduling.k8s.io", "v1");
    g.add(
        "PriorityClass",
        "priorityclasses",
        check::<sched::PriorityClass>,
    )
    .cluster()
    .short(&["pc"])
    .spec();
    out.extend(g.out);

    let mut g = group(store, "storage.k8s.io", "v1");
    g.add("CSIDriver", "csidrivers", check::<sto::CSIDriver>)
        .cluster();
    g.add("CSINode", "csinodes", check::<sto::CSINode>)
        .cluster();
    g.add("StorageClass", "storageclasses", check::<sto::StorageClass>)
        .cluster()
        .short(&["sc"]);
    g.add(
        "VolumeAttachment",
        "volumeattachments",
        check::<sto::VolumeAttachment>,
    )
    .cluster()
    .status();
    out.extend(g.out);
    out
}
