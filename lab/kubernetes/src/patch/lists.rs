//! Which lists of built-in kinds merge item by item, and by which keys.
//!
//! A list is known by the kind and the names of the fields that lead to it, without indexes.

/// How a list merges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum List {
    /// Replaced as a whole.
    Atomic,
    /// A set of scalars.
    Set,
    /// Objects identified by keys; for strategic merge only the first counts.
    Map(Vec<String>),
}

fn map(keys: &[&str]) -> List {
    List::Map(keys.iter().map(|k| (*k).to_owned()).collect())
}

/// The merge rule of the list at `path` in objects of `kind`.
pub(crate) fn rule(kind: &str, path: &[&str]) -> List {
    let Some((last, parents)) = path.split_last() else {
        return List::Atomic;
    };
    let parent = parents.last().copied().unwrap_or_default();
    let in_container = matches!(
        parent,
        "containers" | "initContainers" | "ephemeralContainers"
    );
    match (*last, parent) {
        ("ownerReferences", "metadata") => map(&["uid"]),
        ("finalizers", "metadata") => List::Set,
        ("finalizers", "spec") if kind == "Namespace" => List::Atomic,
        ("containers" | "initContainers" | "ephemeralContainers", _) if parent != "status" => {
            map(&["name"])
        }
        ("env", _) if in_container => map(&["name"]),
        ("ports", _) if in_container => map(&["containerPort", "protocol"]),
        ("ports", "spec") if kind == "Service" => map(&["port", "protocol"]),
        ("volumeMounts", _) if in_container => map(&["mountPath"]),
        ("volumeDevices", _) if in_container => map(&["devicePath"]),
        ("volumes" | "imagePullSecrets", "spec") => map(&["name"]),
        ("hostAliases", "spec") => map(&["ip"]),
        ("topologySpreadConstraints", "spec") => map(&["topologyKey", "whenUnsatisfiable"]),
        ("podIPs" | "hostIPs", "status") => map(&["ip"]),
        ("podCIDRs", "spec") => List::Set,
        ("addresses", "status") if kind == "Node" => map(&["type"]),
        ("conditions", "status") => map(&["type"]),
        ("secrets", "") if kind == "ServiceAccount" => map(&["name"]),
        ("imagePullSecrets", "") if kind == "ServiceAccount" => map(&["name"]),
        ("webhooks", "") => map(&["name"]),
        ("matchConditions", "webhooks") => map(&["name"]),
        _ => List::Atomic,
    }
}

/// Whether the map at `path` has one owner for all of its fields (server-side apply).
pub(crate) fn atomic_map(kind: &str, path: &[&str]) -> bool {
    let Some((last, parents)) = path.split_last() else {
        return false;
    };
    let parent = parents.last().copied().unwrap_or_default();
    match (*last, parent) {
        ("selector", "spec") => true,
        ("nodeSelector", "spec") => true,
        (
            "namespaceSelector" | "objectSelector" | "labelSelector" | "podSelector"
            | "matchLabels",
            _,
        ) => true,
        ("configMapKeyRef" | "secretKeyRef" | "fieldRef" | "resourceFieldRef", _) => true,
        ("targetRef" | "roleRef" | "involvedObject" | "claimRef", _) => true,
        ("scaleTargetRef", _) => kind == "HorizontalPodAutoscaler",
        _ => false,
    }
}

/// Key values that an item may leave out.
pub(crate) fn key_default(key: &str) -> Option<&'static str> {
    (key == "protocol").then_some("TCP")
}
