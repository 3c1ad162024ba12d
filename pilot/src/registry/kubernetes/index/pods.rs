//! Pods, and the nodes they run on.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use k8s_openapi::api::core::v1::Pod;
use pilot_generate::{model::Workload, registry::kubernetes as convert};

use super::{Index, KnownPod, Name};
use crate::source::Event;

impl Index {
    /// Sets or removes a pod; whether it is new.
    pub(super) fn set_pod(&mut self, name: Name, pod: Option<Box<Pod>>) -> bool {
        let former = self.pods.remove(&name);
        let is_new = pod.is_some() && former.is_none();
        let next = pod.map(|object| self.convert(object));
        let by_address = |pod: &KnownPod| match pod.shares_addresses {
            true => Vec::new(),
            false => pod.ips.clone(),
        };
        let before: Vec<IpAddr> = former.as_ref().map(by_address).unwrap_or_default();
        let after: Vec<IpAddr> = next.as_ref().map(by_address).unwrap_or_default();
        for ip in before.iter().filter(|ip| !after.contains(ip)) {
            self.set_workload(*ip, &name, None);
        }
        let workload = next.as_ref().and_then(|pod| pod.workload.clone());
        for ip in &after {
            self.set_workload(*ip, &name, workload.as_ref());
        }
        // Whoever lists it by name.
        let workload_before = former.as_ref().and_then(|pod| pod.workload.clone());
        if workload_before != workload {
            let ips = [&former, &next]
                .into_iter()
                .flatten()
                .flat_map(|pod| &pod.ips);
            for ip in ips {
                self.dirty
                    .extend(self.listed_in.get(ip).into_iter().flatten().cloned());
            }
        }
        if let Some(pod) = next {
            self.pods.insert(name, pod);
        }
        is_new
    }

    fn convert(&self, object: Box<Pod>) -> KnownPod {
        let node = object
            .spec
            .as_ref()
            .and_then(|spec| spec.node_name.as_ref());
        let labels = node.and_then(|node| self.nodes.get(node));
        match convert::workload(&object, labels, &self.context) {
            Some(found) => KnownPod {
                object,
                ips: found.ips,
                shares_addresses: found.shares_addresses,
                workload: Some(found.workload),
            },
            None => KnownPod {
                object,
                ips: Vec::new(),
                shares_addresses: false,
                workload: None,
            },
        }
    }

    fn set_workload(&mut self, ip: IpAddr, name: &Name, workload: Option<&Arc<Workload>>) {
        let known = self.shard.workloads.get(&ip);
        match workload {
            Some(workload) if known.is_some_and(|known| **known == **workload) => return,
            Some(workload) => {
                Arc::make_mut(&mut self.shard.workloads).insert(ip, workload.clone());
            }
            // The address may belong to another pod by now.
            None if known.is_none_or(|k| (&*k.name, &*k.namespace) != (&*name.0, &*name.1)) => {
                return;
            }
            None => {
                Arc::make_mut(&mut self.shard.workloads).remove(&ip);
            }
        }
        self.note(Event::Endpoints);
        self.dirty
            .extend(self.listed_in.get(&ip).into_iter().flatten().cloned());
    }

    /// Sets or removes the labels of a node; whether it is new.
    pub(super) fn set_node(
        &mut self,
        name: String,
        labels: Option<BTreeMap<String, String>>,
    ) -> bool {
        let known = self.nodes.get(&name);
        if known == labels.as_ref() {
            return false;
        }
        let is_new = known.is_none();
        match labels {
            Some(labels) => self.nodes.insert(name.clone(), labels),
            None => self.nodes.remove(&name),
        };
        let on_it: Vec<Name> = self
            .pods
            .iter()
            .filter(|(_, pod)| {
                let spec = pod.object.spec.as_ref();
                spec.and_then(|spec| spec.node_name.as_ref()) == Some(&name)
            })
            .map(|(pod, _)| pod.clone())
            .collect();
        for pod in on_it {
            let object = self.pods.get(&pod).map(|pod| pod.object.clone());
            self.set_pod(pod, object);
        }
        is_new
    }
}
