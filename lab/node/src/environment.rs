//! The environment of a container: image defaults, services, envFrom, env, in rising precedence, with `$(VAR)` expansion.

use std::{collections::BTreeMap, net::Ipv4Addr};

use k8s_openapi::api::core::v1::{Container, EnvVar, Pod};

use crate::{
    container::privileges,
    fields,
    network::{KUBERNETES_IP, services::ServiceTable},
    objects::Objects,
};

/// Search path of every container.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What the environment is made from.
#[derive(Debug)]
pub(crate) struct Inputs<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) container: &'a Container,
    pub(crate) ip: Ipv4Addr,
    pub(crate) hostname: &'a str,
    pub(crate) uid: u32,
    pub(crate) services: &'a ServiceTable,
}

/// Builds the environment. The error is what the user sees as `CreateContainerConfigError`.
pub(crate) fn build(
    inputs: &Inputs<'_>,
    objects: &Objects,
) -> Result<Vec<(String, String)>, String> {
    let Inputs {
        pod,
        container,
        hostname,
        uid,
        services,
        ..
    } = inputs;
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let mut env: BTreeMap<String, String> = BTreeMap::new();
    let mut set = |name: &str, value: String| {
        env.insert(name.to_owned(), value);
    };
    set("PATH", PATH.into());
    set("HOME", privileges::home(*uid).into());
    set("HOSTNAME", (*hostname).to_owned());
    kubernetes_variables(&mut set);
    if pod
        .spec
        .as_ref()
        .and_then(|spec| spec.enable_service_links)
        .unwrap_or(true)
    {
        service_variables(services, namespace, &mut set);
    }
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or("");
        if let Some(reference) = &source.config_map_ref {
            match objects.config_map(namespace, &reference.name) {
                Some(map) => {
                    for (key, value) in map.data.iter().flatten() {
                        set(&format!("{prefix}{key}"), value.clone());
                    }
                }
                None if reference.optional == Some(true) => {}
                None => return Err(format!("configmap \"{}\" not found", reference.name)),
            }
        }
        if let Some(reference) = &source.secret_ref {
            match objects.secret(namespace, &reference.name) {
                Some(secret) => {
                    for (key, value) in secret.data.iter().flatten() {
                        set(
                            &format!("{prefix}{key}"),
                            String::from_utf8_lossy(&value.0).into_owned(),
                        );
                    }
                }
                None if reference.optional == Some(true) => {}
                None => return Err(format!("secret \"{}\" not found", reference.name)),
            }
        }
    }
    for variable in container.env.iter().flatten() {
        let value = match &variable.value {
            Some(value) => Some(expand(value, &env)),
            None => value_from(variable, inputs, namespace, objects)?,
        };
        if let Some(value) = value {
            env.insert(variable.name.clone(), value);
        }
    }
    Ok(env.into_iter().collect())
}

fn value_from(
    variable: &EnvVar,
    inputs: &Inputs<'_>,
    namespace: &str,
    objects: &Objects,
) -> Result<Option<String>, String> {
    let Some(source) = &variable.value_from else {
        return Ok(Some(String::new()));
    };
    if let Some(selector) = &source.field_ref {
        return fields::field(inputs.pod, inputs.ip, selector).map(Some);
    }
    if let Some(selector) = &source.resource_field_ref {
        let spec = inputs.pod.spec.as_ref();
        let container = selector
            .container_name
            .as_ref()
            .and_then(|name| {
                spec?
                    .containers
                    .iter()
                    .find(|container| container.name == *name)
            })
            .unwrap_or(inputs.container);
        return fields::resource(container, selector).map(Some);
    }
    if let Some(selector) = &source.config_map_key_ref {
        let optional = selector.optional == Some(true);
        let Some(map) = objects.config_map(namespace, &selector.name) else {
            return if optional {
                Ok(None)
            } else {
                Err(format!("configmap \"{}\" not found", selector.name))
            };
        };
        return match map.data.as_ref().and_then(|data| data.get(&selector.key)) {
            Some(value) => Ok(Some(value.clone())),
            None if optional => Ok(None),
            None => Err(format!(
                "couldn't find key {} in ConfigMap {namespace}/{}",
                selector.key, selector.name
            )),
        };
    }
    if let Some(selector) = &source.secret_key_ref {
        let optional = selector.optional == Some(true);
        let Some(secret) = objects.secret(namespace, &selector.name) else {
            return if optional {
                Ok(None)
            } else {
                Err(format!("secret \"{}\" not found", selector.name))
            };
        };
        return match secret
            .data
            .as_ref()
            .and_then(|data| data.get(&selector.key))
        {
            Some(value) => Ok(Some(String::from_utf8_lossy(&value.0).into_owned())),
            None if optional => Ok(None),
            None => Err(format!(
                "couldn't find key {} in Secret {namespace}/{}",
                selector.key, selector.name
            )),
        };
    }
    Err(format!(
        "env {}: valueFrom needs fieldRef, resourceFieldRef, configMapKeyRef or secretKeyRef",
        variable.name
    ))
}

fn kubernetes_variables(set: &mut impl FnMut(&str, String)) {
    let ip = KUBERNETES_IP;
    set("KUBERNETES_SERVICE_HOST", ip.to_string());
    set("KUBERNETES_SERVICE_PORT", "443".into());
    set("KUBERNETES_SERVICE_PORT_HTTPS", "443".into());
    set("KUBERNETES_PORT", format!("tcp://{ip}:443"));
    set("KUBERNETES_PORT_443_TCP", format!("tcp://{ip}:443"));
    set("KUBERNETES_PORT_443_TCP_ADDR", ip.to_string());
    set("KUBERNETES_PORT_443_TCP_PORT", "443".into());
    set("KUBERNETES_PORT_443_TCP_PROTO", "tcp".into());
}

fn service_variables(services: &ServiceTable, namespace: &str, set: &mut impl FnMut(&str, String)) {
    for service in services
        .services
        .values()
        .filter(|service| service.namespace == namespace)
    {
        let (Some(vip), Some(first)) = (service.cluster_ip, service.ports.first()) else {
            continue;
        };
        if service.name == "kubernetes" {
            continue;
        }
        let name = service.name.to_uppercase().replace('-', "_");
        set(&format!("{name}_SERVICE_HOST"), vip.to_string());
        set(&format!("{name}_SERVICE_PORT"), first.port.to_string());
        let protocol = first.protocol.to_lowercase();
        set(
            &format!("{name}_PORT"),
            format!("{protocol}://{vip}:{}", first.port),
        );
        for port in &service.ports {
            if !port.name.is_empty() {
                let port_name = port.name.to_uppercase().replace('-', "_");
                set(
                    &format!("{name}_SERVICE_PORT_{port_name}"),
                    port.port.to_string(),
                );
            }
            let protocol = port.protocol.to_lowercase();
            let base = format!("{name}_PORT_{}_{}", port.port, port.protocol);
            set(&base, format!("{protocol}://{vip}:{}", port.port));
            set(&format!("{base}_PROTO"), protocol);
            set(&format!("{base}_PORT"), port.port.to_string());
            set(&format!("{base}_ADDR"), vip.to_string());
        }
    }
}

/// Expands `$(NAME)` for known names; `$$` is a dollar, unknown references stay as they are.
pub(crate) fn expand(text: &str, env: &BTreeMap<String, String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(after) = after.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, tail)) = after
            .strip_prefix('(')
            .and_then(|inner| inner.split_once(')'))
        {
            match env.get(name) {
                Some(value) => out.push_str(value),
                None => {
                    out.push_str("$(");
                    out.push_str(name);
                    out.push(')');
                }
            }
            rest = tail;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_expand_and_unknown_ones_stay() {
        let env = BTreeMap::from([("A".to_owned(), "1".to_owned())]);
        for (text, expected) in [
            ("x$(A)y", "x1y"),
            ("$(B)", "$(B)"),
            ("$$(A)", "$(A)"),
            ("$A $", "$A $"),
            ("$(A", "$(A"),
        ] {
            assert_eq!(expand(text, &env), expected, "{text}");
        }
    }
}
