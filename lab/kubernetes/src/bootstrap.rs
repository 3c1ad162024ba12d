//! What a new cluster has from the start: system namespaces, the `kubernetes` service, default roles.
//!
//! Run at every start; what exists is left alone, except the endpoint of the `kubernetes` service,
//! which follows the advertised address.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::rest::{Context, write};
use crate::server::Server;
use crate::{Error, json};

pub(crate) async fn run(server: &Arc<Server>) -> Result<(), Error> {
    for name in ["default", "kube-system", "kube-public", "kube-node-lease"] {
        ensure(
            server,
            "",
            "namespaces",
            "",
            json!({"metadata": {"name": name}}),
        )
        .await?;
    }
    roles(server).await?;
    let Some(ip) = server.config.service_cidr.hosts().next() else {
        return Err(Error::Store(format!(
            "the service range {} has no address",
            server.config.service_cidr
        )));
    };
    ensure(
        server,
        "",
        "services",
        "default",
        json!({"metadata": {"name": "kubernetes", "labels": {"component": "apiserver", "provider": "kubernetes"}},
            "spec": {"clusterIP": ip.to_string(), "ports": [{"name": "https", "port": 443, "targetPort": 443}]}}),
    )
    .await?;
    if let Some(address) = server.config.advertise {
        endpoints(server, address).await?;
    }
    Ok(())
}

async fn endpoints(server: &Arc<Server>, address: std::net::SocketAddr) -> Result<(), Error> {
    let ip = address.ip().to_string();
    let ports = json!([{"name": "https", "port": address.port(), "protocol": "TCP"}]);
    put(
        server,
        "",
        "endpoints",
        "default",
        json!({"metadata": {"name": "kubernetes", "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
            "subsets": [{"addresses": [{"ip": ip}], "ports": ports}]}),
    )
    .await?;
    put(
        server,
        "discovery.k8s.io",
        "endpointslices",
        "default",
        json!({"metadata": {"name": "kubernetes", "labels": {"kubernetes.io/service-name": "kubernetes"}},
            "addressType": "IPv4", "endpoints": [{"addresses": [ip], "conditions": {"ready": true}}], "ports": ports}),
    )
    .await
}

/// Roles that users expect to be able to bind.
async fn roles(server: &Arc<Server>) -> Result<(), Error> {
    const GROUP: &str = "rbac.authorization.k8s.io";
    let read = json!(["get", "list", "watch"]);
    let all = json!(["*"]);
    let workloads = json!([
        "configmaps",
        "endpoints",
        "events",
        "persistentvolumeclaims",
        "pods",
        "pods/log",
        "pods/status",
        "replicationcontrollers",
        "serviceaccounts",
        "services",
        "deployments",
        "replicasets",
        "statefulsets",
        "daemonsets",
        "deployments/scale",
        "jobs",
        "cronjobs",
        "ingresses",
        "networkpolicies",
        "poddisruptionbudgets",
        "horizontalpodautoscalers",
        "endpointslices"
    ]);
    let groups = json!([
        "",
        "apps",
        "autoscaling",
        "batch",
        "networking.k8s.io",
        "policy",
        "discovery.k8s.io"
    ]);
    let write = json!([
        "create",
        "delete",
        "deletecollection",
        "get",
        "list",
        "patch",
        "update",
        "watch"
    ]);
    let secret = json!([
        "secrets",
        "pods/exec",
        "pods/attach",
        "pods/portforward",
        "pods/eviction",
        "serviceaccounts/token"
    ]);
    for (name, rules) in [
        (
            "cluster-admin",
            json!([{"apiGroups": all, "resources": all, "verbs": all}, {"nonResourceURLs": all, "verbs": all}]),
        ),
        (
            "view",
            json!([{"apiGroups": groups, "resources": workloads, "verbs": read}]),
        ),
        (
            "edit",
            json!([{"apiGroups": groups, "resources": workloads, "verbs": write}, {"apiGroups": [""], "resources": secret, "verbs": write}]),
        ),
        (
            "admin",
            json!([{"apiGroups": groups, "resources": workloads, "verbs": write}, {"apiGroups": [""], "resources": secret, "verbs": write},
                {"apiGroups": [GROUP], "resources": ["roles", "rolebindings"], "verbs": write}]),
        ),
        (
            "system:auth-delegator",
            json!([{"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]},
                {"apiGroups": ["authorization.k8s.io"], "resources": ["subjectaccessreviews"], "verbs": ["create"]}]),
        ),
    ] {
        let labels = json!({"kubernetes.io/bootstrapping": "rbac-defaults"});
        ensure(
            server,
            GROUP,
            "clusterroles",
            "",
            json!({"metadata": {"name": name, "labels": labels}, "rules": rules}),
        )
        .await?;
    }
    ensure(
        server,
        GROUP,
        "clusterrolebindings",
        "",
        json!({"metadata": {"name": "cluster-admin", "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"}},
            "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": "cluster-admin"},
            "subjects": [{"apiGroup": GROUP, "kind": "Group", "name": "system:masters"}]}),
    )
    .await
}

fn prepare(
    server: &Arc<Server>,
    group: &str,
    plural: &str,
    namespace: &str,
    value: &mut Value,
) -> Result<Context, Error> {
    let resource = server
        .registry
        .snapshot()
        .get(group, plural)
        .ok_or_else(|| {
            Error::Store(format!(
                "no built-in resource {plural} in group \"{group}\""
            ))
        })?;
    json::set(value, &["kind"], resource.kind.clone().into());
    json::set(
        value,
        &["apiVersion"],
        resource.storage_api_version().into(),
    );
    let mut context = Context::internal(server, resource, namespace);
    context.name = Some(json::str_at(value, &["metadata", "name"]).to_owned());
    Ok(context)
}

/// Creates the object unless there is one of that name.
async fn ensure(
    server: &Arc<Server>,
    group: &str,
    plural: &str,
    namespace: &str,
    mut value: Value,
) -> Result<(), Error> {
    let context = prepare(server, group, plural, namespace, &mut value)?;
    match write::create_value(&context, value).await {
        Err(e) if e.code() != 409 => Err(Error::Store(format!("bootstrap: {}", e.message()))),
        _ => Ok(()),
    }
}

/// Creates the object or gives the existing one this content.
async fn put(
    server: &Arc<Server>,
    group: &str,
    plural: &str,
    namespace: &str,
    mut value: Value,
) -> Result<(), Error> {
    let context = prepare(server, group, plural, namespace, &mut value)?;
    let result = match write::create_value(&context, value.clone()).await {
        Err(e) if e.code() == 409 => write::update(&context, |_| Ok(value.clone())).await,
        other => other,
    };
    result
        .map(drop)
        .map_err(|e| Error::Store(format!("bootstrap: {}", e.message())))
}
