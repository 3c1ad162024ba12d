//! The experiments that exist, by name.

mod newcomer;
mod pilot_down;
mod pilot_replica_down;
mod pod_churn;
mod replicas;

use crate::cluster::Cluster;
use crate::engine::Experiment;

/// All experiments, in the order in which `--all` runs them.
pub fn all(cluster_namespaces: &Namespaces) -> Vec<Box<dyn Experiment>> {
    vec![
        Box::new(pilot_down::PilotDown::new(cluster_namespaces)),
        Box::new(pilot_replica_down::PilotReplicaDown::new(
            cluster_namespaces,
        )),
        Box::new(pod_churn::PodChurn::new(cluster_namespaces)),
    ]
}

/// Where things run; known before there is a connection to a cluster, so that `list` needs none.
#[derive(Debug, Clone)]
pub struct Namespaces {
    /// Of the application.
    pub application: String,
    /// Of the control plane.
    pub istio: String,
}

impl From<&Cluster> for Namespaces {
    fn from(cluster: &Cluster) -> Self {
        Self {
            application: cluster.namespace.clone(),
            istio: cluster.istio_namespace.clone(),
        }
    }
}

/// A name that no experiment has, and what was meant instead.
#[derive(Debug, thiserror::Error)]
#[error("there is no experiment {name:?}; there are: {known}")]
pub struct Unknown {
    /// What was asked for.
    pub name: String,
    /// What exists.
    pub known: String,
}

/// Picks experiments by name, in the order asked for.
pub fn named(
    namespaces: &Namespaces,
    names: &[String],
) -> Result<Vec<Box<dyn Experiment>>, Unknown> {
    names
        .iter()
        .map(|name| {
            all(namespaces)
                .into_iter()
                .find(|e| e.definition().name == name)
                .ok_or_else(|| Unknown {
                    name: name.clone(),
                    known: all(namespaces)
                        .iter()
                        .map(|e| e.definition().name)
                        .collect::<Vec<_>>()
                        .join(", "),
                })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::engine::TRAFFIC;

    fn namespaces() -> Namespaces {
        Namespaces {
            application: "default".into(),
            istio: "istio-system".into(),
        }
    }

    #[test]
    fn every_definition_is_complete() {
        for experiment in all(&namespaces()) {
            let definition = experiment.definition();
            let names: BTreeSet<_> = definition.probes.iter().map(|p| p.name).collect();
            assert_eq!(names.len(), definition.probes.len(), "{}", definition.name);
            assert!(names.contains(TRAFFIC), "{}", definition.name);
            assert!(definition.probes.iter().all(|p| !p.expected.is_empty()));
            assert!(!definition.target.selector.is_empty());
        }
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_known_ones() {
        let names = ["pod-churn".to_owned(), "pilot-dwon".to_owned()];
        let error = named(&namespaces(), &names).err().expect("a typo");
        assert_eq!(
            error.to_string(),
            "there is no experiment \"pilot-dwon\"; there are: pilot-down, pilot-replica-down, pod-churn"
        );
        let found = named(&namespaces(), &names[..1]).expect("exists");
        assert_eq!(found[0].definition().name, "pod-churn");
    }
}
