//! deploy/bookinfo: that the injected manifest is the plain one and a sidecar, and that the examples fit together.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/bookinfo")
}

fn load(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    serde_saphyr::from_multiple(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn by_name(objects: Vec<Value>) -> BTreeMap<String, Value> {
    let name = |object: &Value| {
        format!(
            "{}/{}",
            object["kind"].as_str().unwrap(),
            object["metadata"]["name"].as_str().unwrap()
        )
    };
    objects
        .into_iter()
        .map(|object| (name(&object), object))
        .collect()
}

fn container<'a>(deployment: &'a Value, list: &str, name: &str) -> &'a Value {
    let containers = deployment["spec"]["template"]["spec"][list]
        .as_array()
        .unwrap();
    containers
        .iter()
        .find(|container| container["name"] == name)
        .unwrap()
}

#[test]
fn injected_is_plain_and_a_sidecar() {
    let plain = by_name(load(&folder().join("bookinfo.yaml")));
    let injected = by_name(load(&folder().join("bookinfo-injected.yaml")));
    assert_eq!(
        plain.keys().collect::<Vec<_>>(),
        injected.keys().collect::<Vec<_>>()
    );
    assert_eq!(
        plain
            .keys()
            .filter(|name| name.starts_with("Deployment/"))
            .count(),
        6
    );
    for (name, plain) in &plain {
        let mut injected = injected[name].clone();
        if !name.starts_with("Deployment/") {
            assert_eq!(*plain, injected, "{name}");
            continue;
        }
        sidecar_is_sound(name, &injected);
        let pod = &mut injected["spec"]["template"];
        let metadata = pod["metadata"].as_object_mut().unwrap();
        metadata["labels"]
            .as_object_mut()
            .unwrap()
            .remove("security.istio.io/tlsMode");
        metadata.insert(
            "annotations".into(),
            plain["spec"]["template"]["metadata"]["annotations"].clone(),
        );
        let spec = pod["spec"].as_object_mut().unwrap();
        spec.remove("initContainers");
        spec.remove("volumes");
        let containers = spec["containers"].as_array_mut().unwrap();
        assert_eq!(containers.pop().unwrap()["name"], "istio-proxy");
        containers[0]["readinessProbe"]["httpGet"] = json!({"path": "/health", "port": 9080});
        assert_eq!(*plain, injected, "{name}");
    }
}

fn sidecar_is_sound(name: &str, deployment: &Value) {
    let proxy = container(deployment, "containers", "istio-proxy");
    let app = deployment["metadata"]["labels"]["app"].as_str().unwrap();
    let variable = |wanted: &str| {
        let variables = proxy["env"].as_array().unwrap();
        let found = variables.iter().find(|variable| variable["name"] == wanted);
        found.unwrap_or_else(|| panic!("{name}: no {wanted}"))["value"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    // The app's probe goes by the agent, which knows the original.
    let probers: Value = serde_json::from_str(&variable("ISTIO_KUBE_APP_PROBERS")).unwrap();
    let path = container(deployment, "containers", app)["readinessProbe"]["httpGet"]["path"]
        .as_str()
        .unwrap();
    assert_eq!(
        probers[path],
        json!({"path": "/health", "port": 9080}),
        "{name}"
    );
    let labels: Value = serde_json::from_str(&variable("ISTIO_METAJSON_LABELS")).unwrap();
    assert_eq!(labels, deployment["metadata"]["labels"], "{name}");
    assert_eq!(
        variable("ISTIO_META_WORKLOAD_NAME"),
        deployment["metadata"]["name"].as_str().unwrap()
    );
    assert_eq!(proxy["securityContext"]["runAsUser"], 1337, "{name}");
    assert!(
        !proxy["resources"]["requests"]["cpu"].is_null(),
        "an autoscaler needs requests"
    );

    let init = container(deployment, "initContainers", "istio-init");
    let args: Vec<&str> = init["args"]
        .as_array()
        .unwrap()
        .iter()
        .map(|arg| arg.as_str().unwrap())
        .collect();
    assert_eq!(
        args.join(" "),
        "-p 15001 -z 15006 -u 1337 -m REDIRECT -i * -x  -b * -d 15020",
        "{name}"
    );

    let status =
        &deployment["spec"]["template"]["metadata"]["annotations"]["sidecar.istio.io/status"];
    let status: Value = serde_json::from_str(status.as_str().unwrap()).unwrap();
    assert_eq!(status["containers"], json!(["istio-proxy"]));
}

#[test]
fn examples_name_what_exists() {
    let mut services = BTreeSet::new();
    for file in ["bookinfo.yaml", "echo/echo.yaml"] {
        for name in by_name(load(&folder().join(file))).keys() {
            services.extend(name.strip_prefix("Service/").map(str::to_owned));
        }
    }
    let rules = load(&folder().join("networking/destination-rule-all.yaml"));
    let subsets: BTreeSet<(String, String)> = rules
        .iter()
        .flat_map(|rule| {
            let host = rule["spec"]["host"].as_str().unwrap();
            let subsets = rule["spec"]["subsets"].as_array().unwrap().iter();
            subsets
                .map(move |subset| (host.to_owned(), subset["name"].as_str().unwrap().to_owned()))
        })
        .collect();
    let mut examples = 0;
    for entry in fs::read_dir(folder().join("networking")).unwrap() {
        let path = entry.unwrap().path();
        for object in load(&path) {
            if object["kind"] != "VirtualService" {
                continue;
            }
            examples += 1;
            for route in object["spec"]["http"].as_array().unwrap() {
                destinations_exist(&path, route, &services, &subsets);
            }
        }
    }
    assert!(examples >= 15, "examples went missing: {examples}");
}

fn destinations_exist(
    path: &Path,
    route: &Value,
    services: &BTreeSet<String>,
    subsets: &BTreeSet<(String, String)>,
) {
    let routes = route["route"].as_array().unwrap();
    let weights: Vec<u64> = routes
        .iter()
        .filter_map(|part| part["weight"].as_u64())
        .collect();
    assert!(
        weights.is_empty() || weights.iter().sum::<u64>() == 100,
        "{}",
        path.display()
    );
    let mut destinations: Vec<&Value> = routes.iter().map(|part| &part["destination"]).collect();
    destinations.extend(route.get("mirror"));
    for destination in destinations {
        let host = destination["host"].as_str().unwrap();
        assert!(services.contains(host), "{}: {host}", path.display());
        if let Some(subset) = destination["subset"].as_str() {
            assert!(
                subsets.contains(&(host.to_owned(), subset.to_owned())),
                "{}: {host} {subset}",
                path.display()
            );
        }
    }
}
