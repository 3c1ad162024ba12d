//! What a look at a StatefulSet's pods leads to. Pure.
//!
//! Pods have numbers. With the policy `OrderedReady` one step is taken at a time, and only while everything before it is
//! healthy: pods are made upwards and taken away downwards. `Parallel` makes and takes all at once. A rolling update
//! deletes the highest outdated pod once all above it are healthy, whatever the policy, and stops at the partition.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec, StatefulSetStatus};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use super::REVISION;
use crate::pods::{self, Availability, availability};

/// Which of the two templates a pod is made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Template {
    /// The one before the update that is going on.
    Current,
    Update,
}

/// The names of the two revisions; the same when no update is going on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Revisions {
    pub(super) current: String,
    pub(super) update: String,
}

/// What to do now.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) create: Vec<(i32, Template)>,
    pub(super) delete: Vec<Arc<Pod>>,
    pub(super) status: StatefulSetStatus,
    /// When something will have become true by itself.
    pub(super) again: Option<Duration>,
}

/// The number at the end of a pod's name, if it is one of the set's names.
pub(super) fn ordinal(set: &str, pod: &str) -> Option<i32> {
    let digits = pod.strip_prefix(set)?.strip_prefix('-')?;
    let number: i32 = digits.parse().ok()?;
    (number.to_string() == digits).then_some(number)
}

/// A look at the pods, in the order of their numbers.
struct Look<'a> {
    first: i32,
    replicas: i32,
    ordered: bool,
    min_ready: i32,
    spec: &'a StatefulSetSpec,
    revisions: &'a Revisions,
    now: Timestamp,
    /// Those with a number that is asked for.
    wanted: BTreeMap<i32, Arc<Pod>>,
    /// All others.
    surplus: BTreeMap<i32, Arc<Pod>>,
}

/// Decides on one StatefulSet. `pods` are those it controls.
pub(super) fn plan(
    set: &StatefulSet,
    pods: &[Arc<Pod>],
    revisions: &Revisions,
    now: Timestamp,
) -> Plan {
    let Some(spec) = set.spec.as_ref() else {
        return Plan::default();
    };
    let first = spec.ordinals.as_ref().and_then(|o| o.start).unwrap_or(0);
    let replicas = spec.replicas.unwrap_or(1);
    let name = set.name_any();
    let numbered = pods
        .iter()
        .filter_map(|pod| Some((ordinal(&name, &pod.name_any())?, pod.clone())));
    let (wanted, surplus) =
        numbered.partition(|(number, _)| (first..first + replicas).contains(number));
    let look = Look {
        ordered: spec.pod_management_policy.as_deref() != Some("Parallel"),
        min_ready: spec.min_ready_seconds.unwrap_or(0),
        first,
        replicas,
        spec,
        revisions,
        now,
        wanted,
        surplus,
    };
    let mut plan = Plan {
        status: look.status(set),
        ..Plan::default()
    };
    if look.grow(&mut plan) && look.shrink(&mut plan) {
        look.update(&mut plan);
    }
    plan
}

impl Look<'_> {
    /// Healthy: runs, is ready and has been for long enough, and is not on its way out.
    fn is_healthy(&self, pod: &Pod, plan: &mut Plan) -> bool {
        if !pods::is_active(pod) || pods::phase(pod) != "Running" {
            return false;
        }
        match availability(pod, self.min_ready, self.now) {
            Availability::Available => true,
            Availability::In(wait) => {
                plan.again = Some(plan.again.map_or(wait, |other| other.min(wait)));
                false
            }
            Availability::NotReady => false,
        }
    }

    /// Makes missing pods. Says whether to go on.
    fn grow(&self, plan: &mut Plan) -> bool {
        for number in self.first..self.first + self.replicas {
            let settled = match self.wanted.get(&number) {
                None => {
                    plan.create.push((number, self.template(number)));
                    false
                }
                // A pod that has ended is made anew, under its name, once it is gone.
                Some(pod) if pods::is_finished(pod) && !pods::is_terminating(pod) => {
                    plan.delete.push(pod.clone());
                    false
                }
                Some(pod) => self.is_healthy(pod, plan),
            };
            if self.ordered && !settled {
                return false;
            }
        }
        true
    }

    /// Takes away what is too much, from the top. Says whether to go on.
    fn shrink(&self, plan: &mut Plan) -> bool {
        for pod in self.surplus.values().rev() {
            if !pods::is_terminating(pod) {
                plan.delete.push(pod.clone());
            }
            if self.ordered {
                return false;
            }
        }
        true
    }

    /// Replaces at most one outdated pod: the highest one, if all above it are healthy.
    fn update(&self, plan: &mut Plan) {
        let strategy = self.spec.update_strategy.as_ref();
        if strategy.and_then(|s| s.type_.as_deref()) == Some("OnDelete") {
            return;
        }
        for (number, pod) in self.wanted.iter().rev() {
            if *number < self.first + self.partition() {
                return;
            }
            if revision(pod) != Some(&self.revisions.update) {
                if !pods::is_terminating(pod) && !pods::is_finished(pod) {
                    plan.delete.push(pod.clone());
                }
                return;
            }
            if !self.is_healthy(pod, plan) {
                return;
            }
        }
    }

    fn partition(&self) -> i32 {
        let strategy = self.spec.update_strategy.as_ref();
        let rolling = strategy.and_then(|s| s.rolling_update.as_ref());
        rolling.and_then(|r| r.partition).unwrap_or(0)
    }

    /// Below the partition a pod comes back as it was.
    fn template(&self, number: i32) -> Template {
        if number < self.first + self.partition() {
            Template::Current
        } else {
            Template::Update
        }
    }

    fn status(&self, set: &StatefulSet) -> StatefulSetStatus {
        let all = || self.wanted.values().chain(self.surplus.values());
        let count = |which: &dyn Fn(&Pod) -> bool| {
            i32::try_from(all().filter(|pod| which(pod)).count()).unwrap_or(i32::MAX)
        };
        let made_from = |name: &str| {
            count(&|pod: &Pod| {
                !pods::is_terminating(pod) && revision(pod).is_some_and(|r| r == name)
            })
        };
        let ready = count(&|pod: &Pod| pods::phase(pod) == "Running" && pods::is_ready(pod));
        let available = |pod: &Pod| {
            pods::phase(pod) == "Running"
                && availability(pod, self.min_ready, self.now) == Availability::Available
        };
        let updated = made_from(&self.revisions.update);
        let total = count(&|_: &Pod| true);
        let on_delete = self
            .spec
            .update_strategy
            .as_ref()
            .and_then(|s| s.type_.as_deref())
            == Some("OnDelete");
        let nonzero = |n: i32| (n > 0).then_some(n);
        let mut status = StatefulSetStatus {
            observed_generation: set.metadata.generation,
            replicas: total,
            ready_replicas: nonzero(ready),
            available_replicas: nonzero(count(&available)),
            current_replicas: nonzero(made_from(&self.revisions.current)),
            updated_replicas: nonzero(updated),
            current_revision: Some(self.revisions.current.clone()),
            update_revision: Some(self.revisions.update.clone()),
            collision_count: set.status.as_ref().and_then(|s| s.collision_count),
            conditions: set.status.as_ref().and_then(|s| s.conditions.clone()),
        };
        // The update is through: what was new is the current one now.
        if !on_delete && updated == total && ready == total && total == self.replicas {
            status.current_revision = Some(self.revisions.update.clone());
            status.current_replicas = nonzero(updated);
        }
        status
    }
}

fn revision(pod: &Pod) -> Option<&String> {
    pod.labels().get(REVISION)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::{Value, json};

    fn set(spec: Value) -> StatefulSet {
        let mut spec = spec;
        spec["selector"] = json!({});
        spec["template"] = json!({});
        spec["serviceName"] = json!("db");
        serde_json::from_value(json!({"metadata": {"name": "db", "generation": 3}, "spec": spec}))
            .unwrap()
    }

    /// `db-N` of a revision; state: `r`eady, `u`nready, `f`ailed, `t`erminating.
    fn pods(described: &[(i32, char, &str)]) -> Vec<Arc<Pod>> {
        let pod = |(number, state, revision): &(i32, char, &str)| {
            let ready = if "rt".contains(*state) {
                "True"
            } else {
                "False"
            };
            let phase = if *state == 'f' { "Failed" } else { "Running" };
            let gone = (*state == 't').then_some("2026-01-01T00:00:00Z");
            Arc::new(
                serde_json::from_value(json!({
                    "metadata": {"name": format!("db-{number}"), "labels": {REVISION: revision}, "deletionTimestamp": gone},
                    "status": {"phase": phase, "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": "2026-01-01T00:00:00Z"}]}
                }))
                .unwrap(),
            )
        };
        described.iter().map(pod).collect()
    }

    fn look(spec: Value, described: &[(i32, char, &str)]) -> (Vec<i32>, Vec<String>) {
        let revisions = Revisions {
            current: "old".into(),
            update: "new".into(),
        };
        let plan = plan(
            &set(spec),
            &pods(described),
            &revisions,
            Timestamp::from_second(1_800_000_000).unwrap(),
        );
        let created = plan.create.iter().map(|(number, _)| *number).collect();
        let deleted = plan.delete.iter().map(|pod| pod.name_any()).collect();
        (created, deleted)
    }

    fn nothing() -> (Vec<i32>, Vec<String>) {
        (vec![], vec![])
    }

    fn create(numbers: &[i32]) -> (Vec<i32>, Vec<String>) {
        (numbers.to_vec(), vec![])
    }

    fn delete(names: &[&str]) -> (Vec<i32>, Vec<String>) {
        (vec![], names.iter().map(|n| (*n).to_owned()).collect())
    }

    #[test]
    fn names_with_numbers() {
        for (pod, expected) in [
            ("db-0", Some(0)),
            ("db-12", Some(12)),
            ("db-012", None),
            ("db-x", None),
            ("db-1-2", None),
            ("dbs-1", None),
        ] {
            assert_eq!(ordinal("db", pod), expected, "{pod}");
        }
    }

    #[test]
    fn grows_in_order_when_those_before_are_healthy() {
        let three = || json!({"replicas": 3});
        assert_eq!(look(three(), &[]), create(&[0]));
        assert_eq!(look(three(), &[(0, 'u', "new")]), nothing());
        assert_eq!(look(three(), &[(0, 'r', "new")]), create(&[1]));
        assert_eq!(
            look(three(), &[(0, 't', "new"), (1, 'r', "new")]),
            nothing(),
            "db-0 comes back before db-2 comes"
        );
        assert_eq!(
            look(three(), &[(0, 'f', "new"), (1, 'r', "new")]),
            delete(&["db-0"])
        );
        let parallel = json!({"replicas": 3, "podManagementPolicy": "Parallel"});
        assert_eq!(look(parallel, &[(1, 'u', "new")]), create(&[0, 2]));
        let shifted = json!({"replicas": 2, "ordinals": {"start": 5}});
        assert_eq!(look(shifted, &[(5, 'r', "new")]), create(&[6]));
    }

    #[test]
    fn shrinks_from_the_top_when_the_rest_is_healthy() {
        let one = || json!({"replicas": 1});
        let all = [(0, 'r', "new"), (1, 'r', "new"), (2, 'r', "new")];
        assert_eq!(look(one(), &all), delete(&["db-2"]));
        assert_eq!(look(one(), &[all[0], all[1], (2, 't', "new")]), nothing());
        assert_eq!(look(one(), &[(0, 'u', "new"), all[1]]), nothing());
        let parallel = json!({"replicas": 1, "podManagementPolicy": "Parallel"});
        assert_eq!(look(parallel, &all), delete(&["db-2", "db-1"]));
        assert_eq!(
            look(json!({"replicas": 0}), &[(0, 'u', "new")]),
            delete(&["db-0"])
        );
    }

    #[test]
    fn updates_from_the_top_one_at_a_time_down_to_the_partition() {
        let three = || json!({"replicas": 3});
        let old = [(0, 'r', "old"), (1, 'r', "old"), (2, 'r', "old")];
        assert_eq!(look(three(), &old), delete(&["db-2"]));
        assert_eq!(look(three(), &[old[0], old[1], (2, 't', "old")]), nothing());
        assert_eq!(look(three(), &[old[0], old[1], (2, 'u', "new")]), nothing());
        assert_eq!(
            look(three(), &[old[0], old[1], (2, 'r', "new")]),
            delete(&["db-1"])
        );
        let partition = json!({"replicas": 3, "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 2}}});
        assert_eq!(
            look(partition, &[old[0], old[1], (2, 'r', "new")]),
            nothing()
        );
        let by_hand = json!({"replicas": 3, "updateStrategy": {"type": "OnDelete"}});
        assert_eq!(look(by_hand, &old), nothing());
    }

    #[test]
    fn below_the_partition_pods_come_back_as_they_were() {
        let spec = json!({"replicas": 2, "podManagementPolicy": "Parallel",
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 1}}});
        let revisions = Revisions {
            current: "old".into(),
            update: "new".into(),
        };
        let plan = plan(&set(spec), &[], &revisions, Timestamp::UNIX_EPOCH);
        assert_eq!(plan.create, [(0, Template::Current), (1, Template::Update)]);
    }

    #[test]
    fn status_counts_and_notices_the_end_of_an_update() {
        let revisions = Revisions {
            current: "old".into(),
            update: "new".into(),
        };
        let of = |described: &[(i32, char, &str)]| {
            let now = Timestamp::from_second(1_800_000_000).unwrap();
            let status = plan(
                &set(json!({"replicas": 2})),
                &pods(described),
                &revisions,
                now,
            )
            .status;
            (
                status.replicas,
                status.ready_replicas,
                status.updated_replicas,
                status.current_revision.unwrap(),
            )
        };
        assert_eq!(of(&[]), (0, None, None, "old".into()));
        assert_eq!(
            of(&[(0, 'r', "old"), (1, 'u', "new")]),
            (2, Some(1), Some(1), "old".into())
        );
        assert_eq!(
            of(&[(0, 'r', "new"), (1, 'r', "new")]),
            (2, Some(2), Some(2), "new".into())
        );
    }

    #[test]
    fn waits_for_min_ready_seconds_and_says_how_long() {
        let revisions = Revisions {
            current: "new".into(),
            update: "new".into(),
        };
        let since: Timestamp = "2026-01-01T00:00:04Z".parse().unwrap();
        let plan = plan(
            &set(json!({"replicas": 2, "minReadySeconds": 10})),
            &pods(&[(0, 'r', "new")]),
            &revisions,
            since,
        );
        assert!(plan.create.is_empty());
        assert_eq!(plan.again, Some(Duration::from_secs(6)));
    }
}
