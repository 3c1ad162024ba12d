//! Short forms of config that every test needs.

/// A ServiceEntry inside the mesh. `name` is NAME.NAMESPACE, of host `NAME.NAMESPACE.svc.cluster.local`; `vip` may be empty;
/// `ports` are `NUMBER NAME PROTOCOL`, separated by commas; endpoints are `ADDRESS PORT LABELS` ([`super::Backend::endpoint`]),
/// the port being that of every service port.
pub(crate) fn service(name: &str, vip: &str, ports: &str, endpoints: &[String]) -> String {
    let (short, namespace) = name.split_once('.').expect("NAME.NAMESPACE");
    let addresses = if vip.is_empty() {
        String::new()
    } else {
        format!("addresses: [{vip}]")
    };
    let mut port_lines = String::new();
    let mut names = Vec::new();
    for port in ports.split(',') {
        let words: Vec<&str> = port.split_whitespace().collect();
        let [number, name, protocol] = words[..] else {
            panic!("{port:?} is not NUMBER NAME PROTOCOL");
        };
        port_lines += &format!("  - {{number: {number}, name: {name}, protocol: {protocol}}}\n");
        names.push(name);
    }
    let mut endpoint_lines = String::new();
    for endpoint in endpoints {
        let mut words = endpoint.splitn(3, ' ');
        let (address, port) = (words.next().unwrap(), words.next().unwrap());
        let labels = words.next().unwrap_or_default();
        let ports: Vec<String> = names.iter().map(|n| format!("{n}: {port}")).collect();
        endpoint_lines += &format!(
            "  - {{address: {address}, ports: {{{}}}, labels: {{{labels}}}}}\n",
            ports.join(", ")
        );
    }
    format!(
        "apiVersion: networking.istio.io/v1alpha3
kind: ServiceEntry
metadata: {{name: {short}, namespace: {namespace}}}
spec:
  hosts: [{name}.svc.cluster.local]
  {addresses}
  location: MESH_INTERNAL
  resolution: STATIC
  ports:
{port_lines}  endpoints:
{endpoint_lines}---
"
    )
}

/// A VirtualService for one host; `spec` are the lines below `hosts`, indented by two spaces.
pub(crate) fn virtual_service(name: &str, host: &str, spec: &str) -> String {
    config(
        "VirtualService",
        name,
        &format!("  hosts: [\"{host}\"]\n{spec}"),
    )
}

/// A DestinationRule; `spec` are the lines below `host`, indented by two spaces.
pub(crate) fn destination_rule(name: &str, host: &str, spec: &str) -> String {
    config(
        "DestinationRule",
        name,
        &format!("  host: \"{host}\"\n{spec}"),
    )
}

/// Any object of networking.istio.io/v1alpha3; `name` is NAME.NAMESPACE, `spec` indented by two spaces.
pub(crate) fn config(kind: &str, name: &str, spec: &str) -> String {
    let (name, namespace) = name.split_once('.').expect("NAME.NAMESPACE");
    let spec = spec.trim_matches('\n');
    format!(
        "apiVersion: networking.istio.io/v1alpha3
kind: {kind}
metadata: {{name: {name}, namespace: {namespace}}}
spec:
{spec}
---
"
    )
}
