//! From the slices there are to the slices there should be, with as few writes as possible. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::ResourceExt;

use super::desired::{Group, port_key};

/// Most endpoints one slice may hold.
const MAX_ENDPOINTS: usize = 100;
pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub(crate) const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
pub(crate) const CHANGED_AT: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// What all slices of a Service share.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    pub(crate) namespace: String,
    pub(crate) service: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) owner: OwnerReference,
    pub(crate) changed_at: String,
}

/// The writes that make it so. Additions come before removals, so that no reader sees fewer endpoints than there are.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) create: Vec<EndpointSlice>,
    pub(crate) update: Vec<EndpointSlice>,
    pub(crate) delete: Vec<Arc<EndpointSlice>>,
}

struct Kept {
    slice: Arc<EndpointSlice>,
    endpoints: Vec<Endpoint>,
}

/// Updates endpoints where they are, fills what is new into slices with room, then into new ones; slices left empty go,
/// except for one per Service that shows that it has none.
pub(crate) fn plan(
    frame: &Frame,
    mut groups: Vec<Group>,
    existing: Vec<Arc<EndpointSlice>>,
) -> Plan {
    let mut plan = Plan::default();
    let none_wanted = groups.iter().all(|g| g.endpoints.is_empty());
    if none_wanted {
        // An existing slice is emptied rather than replaced: readers never see the Service without a slice.
        groups = match existing.first() {
            Some(slice) => vec![Group {
                address_type: if slice.address_type == "IPv6" {
                    "IPv6"
                } else {
                    "IPv4"
                },
                ports: slice.ports.clone().unwrap_or_default(),
                endpoints: Vec::new(),
            }],
            None => vec![Group {
                address_type: "IPv4",
                ports: Vec::new(),
                endpoints: Vec::new(),
            }],
        };
    }
    let mut rest = existing;
    for group in groups {
        let (mine, others): (Vec<_>, Vec<_>) =
            rest.into_iter().partition(|slice| belongs(slice, &group));
        rest = others;
        plan_group(frame, group, mine, none_wanted, &mut plan);
    }
    // A slice that shows nothing is given a new content rather than replaced: one write, and one object less to watch.
    for slice in std::mem::take(&mut plan.create) {
        let unused = |old: &Arc<EndpointSlice>| {
            old.endpoints.is_empty() && old.address_type == slice.address_type
        };
        match rest.iter().position(unused) {
            Some(index) => {
                let mut reused = updated(frame, &rest.swap_remove(index), slice.endpoints);
                reused.ports = slice.ports;
                plan.update.push(reused);
            }
            None => plan.create.push(slice),
        }
    }
    plan.delete.extend(rest);
    plan
}

fn belongs(slice: &EndpointSlice, group: &Group) -> bool {
    let mut ports = slice.ports.clone().unwrap_or_default();
    ports.sort_by(|a, b| port_key(a).cmp(&port_key(b)));
    let mut wanted = group.ports.clone();
    wanted.sort_by(|a, b| port_key(a).cmp(&port_key(b)));
    slice.address_type == group.address_type && same_ports(&ports, &wanted)
}

fn same_ports(a: &[EndpointPort], b: &[EndpointPort]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| port_key(a) == port_key(b))
}

/// An endpoint is the same while it is the same pod at the same address.
fn identity(endpoint: &Endpoint) -> (Option<&str>, Option<&str>) {
    let uid = endpoint.target_ref.as_ref().and_then(|t| t.uid.as_deref());
    (uid, endpoint.addresses.first().map(String::as_str))
}

fn plan_group(
    frame: &Frame,
    group: Group,
    mine: Vec<Arc<EndpointSlice>>,
    keep_one_empty: bool,
    plan: &mut Plan,
) {
    let mut wanted: BTreeMap<(Option<String>, Option<String>), Endpoint> = group
        .endpoints
        .into_iter()
        .map(|e| {
            let (uid, ip) = identity(&e);
            ((uid.map(str::to_owned), ip.map(str::to_owned)), e)
        })
        .collect();
    let mut kept: Vec<Kept> = mine
        .into_iter()
        .map(|slice| {
            let endpoints = slice
                .endpoints
                .iter()
                .filter_map(|e| {
                    let (uid, ip) = identity(e);
                    wanted.remove(&(uid.map(str::to_owned), ip.map(str::to_owned)))
                })
                .collect();
            Kept { slice, endpoints }
        })
        .collect();
    // The fullest first: few slices, and those that are nearly empty can drain away.
    kept.sort_by_key(|k| std::cmp::Reverse(k.endpoints.len()));
    let mut fresh: Vec<Endpoint> = wanted.into_values().collect();
    for slot in &mut kept {
        let room = MAX_ENDPOINTS
            .saturating_sub(slot.endpoints.len())
            .min(fresh.len());
        slot.endpoints.extend(fresh.drain(..room));
    }
    let mut may_keep_empty = keep_one_empty;
    for slot in kept {
        if slot.endpoints.is_empty() && !std::mem::take(&mut may_keep_empty) {
            plan.delete.push(slot.slice);
        } else if slot.endpoints != slot.slice.endpoints || !framed(&slot.slice, frame) {
            plan.update
                .push(updated(frame, &slot.slice, slot.endpoints));
        }
    }
    for chunk in fresh.chunks(MAX_ENDPOINTS) {
        plan.create.push(created(
            frame,
            group.address_type,
            &group.ports,
            chunk.to_vec(),
        ));
    }
    if may_keep_empty && fresh.is_empty() && keep_one_empty {
        plan.create
            .push(created(frame, group.address_type, &group.ports, Vec::new()));
    }
}

fn framed(slice: &EndpointSlice, frame: &Frame) -> bool {
    slice.labels() == &frame.labels && slice.owner_references().contains(&frame.owner)
}

fn updated(frame: &Frame, slice: &EndpointSlice, endpoints: Vec<Endpoint>) -> EndpointSlice {
    let mut slice = slice.clone();
    slice.endpoints = endpoints;
    slice.metadata.labels = Some(frame.labels.clone());
    slice.metadata.owner_references = Some(vec![frame.owner.clone()]);
    slice
        .annotations_mut()
        .insert(CHANGED_AT.to_owned(), frame.changed_at.clone());
    slice
}

fn created(
    frame: &Frame,
    address_type: &str,
    ports: &[EndpointPort],
    endpoints: Vec<Endpoint>,
) -> EndpointSlice {
    EndpointSlice {
        address_type: address_type.to_owned(),
        endpoints,
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", frame.service)),
            namespace: Some(frame.namespace.clone()),
            labels: Some(frame.labels.clone()),
            annotations: Some([(CHANGED_AT.to_owned(), frame.changed_at.clone())].into()),
            owner_references: Some(vec![frame.owner.clone()]),
            ..ObjectMeta::default()
        },
        ports: (!ports.is_empty()).then(|| ports.to_vec()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use k8s_openapi::api::core::v1::ObjectReference;
    use k8s_openapi::api::discovery::v1::EndpointConditions;

    fn frame() -> Frame {
        Frame {
            namespace: "n".into(),
            service: "web".into(),
            labels: [(SERVICE_NAME.to_owned(), "web".to_owned())].into(),
            owner: OwnerReference {
                name: "web".into(),
                ..OwnerReference::default()
            },
            changed_at: "now".into(),
        }
    }

    fn endpoint(n: usize, ready: bool) -> Endpoint {
        Endpoint {
            addresses: vec![format!("10.0.{}.{}", n / 256, n % 256)],
            conditions: Some(EndpointConditions {
                ready: Some(ready),
                ..EndpointConditions::default()
            }),
            target_ref: Some(ObjectReference {
                uid: Some(format!("{n:05}")),
                ..ObjectReference::default()
            }),
            ..Endpoint::default()
        }
    }

    fn group(port: i32, endpoints: Vec<Endpoint>) -> Group {
        let port = EndpointPort {
            port: Some(port),
            name: Some("http".into()),
            ..EndpointPort::default()
        };
        Group {
            address_type: "IPv4",
            ports: vec![port],
            endpoints,
        }
    }

    /// Carries a plan out and returns the slices there are then.
    fn after(
        plan: Plan,
        mut slices: Vec<Arc<EndpointSlice>>,
        next: &mut u32,
    ) -> Vec<Arc<EndpointSlice>> {
        for mut slice in plan.create {
            *next += 1;
            slice.metadata.name = Some(format!("web-{next}"));
            slices.push(Arc::new(slice));
        }
        for update in plan.update {
            let slot = slices
                .iter_mut()
                .find(|s| s.name_any() == update.name_any())
                .unwrap();
            *slot = Arc::new(update);
        }
        for gone in plan.delete {
            slices.retain(|s| s.name_any() != gone.name_any());
        }
        slices
    }

    fn sizes(slices: &[Arc<EndpointSlice>]) -> Vec<usize> {
        let mut sizes: Vec<_> = slices.iter().map(|s| s.endpoints.len()).collect();
        sizes.sort_unstable();
        sizes
    }

    #[test]
    fn a_service_grows_changes_and_shrinks() {
        let mut next = 0;
        let empty = plan(&frame(), vec![], vec![]);
        assert_eq!(
            empty.create.len(),
            1,
            "a Service without pods has one empty slice"
        );
        let slices = after(empty, vec![], &mut next);
        let first = slices[0].name_any();

        let many: Vec<_> = (0..250).map(|n| endpoint(n, true)).collect();
        let grown = plan(&frame(), vec![group(80, many.clone())], slices.clone());
        let slices = after(grown, slices, &mut next);
        assert_eq!(sizes(&slices), [50, 100, 100]);
        assert!(
            slices.iter().any(|s| s.name_any() == first),
            "the empty slice is used"
        );

        let quiet = plan(&frame(), vec![group(80, many.clone())], slices.clone());
        assert!(quiet.create.is_empty() && quiet.update.is_empty() && quiet.delete.is_empty());

        let mut one_changed = many;
        one_changed[7] = endpoint(7, false);
        let changed = plan(&frame(), vec![group(80, one_changed)], slices.clone());
        assert_eq!(
            (
                changed.create.len(),
                changed.update.len(),
                changed.delete.len()
            ),
            (0, 1, 0)
        );
        let slices = after(changed, slices, &mut next);

        let few = plan(
            &frame(),
            vec![group(80, vec![endpoint(7, true), endpoint(900, true)])],
            slices.clone(),
        );
        let slices = after(few, slices, &mut next);
        assert_eq!(sizes(&slices), [2], "the newcomer goes where there is room");

        let none = plan(&frame(), vec![], slices.clone());
        assert_eq!(
            (none.create.len(), none.update.len(), none.delete.len()),
            (0, 1, 0)
        );
        assert_eq!(sizes(&after(none, slices, &mut next)), [0]);
    }

    #[test]
    fn pods_with_other_ports_get_other_slices() {
        let mut next = 0;
        let groups = vec![
            group(80, vec![endpoint(1, true)]),
            group(81, vec![endpoint(2, true)]),
        ];
        let slices = after(plan(&frame(), groups, vec![]), vec![], &mut next);
        assert_eq!(sizes(&slices), [1, 1]);
        let moved = vec![group(81, vec![endpoint(1, true), endpoint(2, true)])];
        let slices = after(plan(&frame(), moved, slices.clone()), slices, &mut next);
        assert_eq!(sizes(&slices), [2]);
        assert_eq!(slices[0].ports.as_ref().unwrap()[0].port, Some(81));
    }

    #[test]
    fn an_endpoint_listed_twice_is_kept_once() {
        let mut next = 0;
        let slices = after(
            plan(&frame(), vec![group(80, vec![endpoint(1, true)])], vec![]),
            vec![],
            &mut next,
        );
        let mut twin = EndpointSlice::clone(&slices[0]);
        twin.metadata.name = Some("web-twin".into());
        let doubled = vec![slices[0].clone(), Arc::new(twin)];
        let healed = plan(
            &frame(),
            vec![group(80, vec![endpoint(1, true)])],
            doubled.clone(),
        );
        assert_eq!(sizes(&after(healed, doubled, &mut next)), [1]);
    }
}
