//! From a worker's state to `PodStatus`, as a watcher of a real cluster sees it. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{
        ContainerState as ApiState, ContainerStateRunning, ContainerStateTerminated,
        ContainerStateWaiting, ContainerStatus, HostIP, Pod, PodCondition, PodIP, PodStatus,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};

use super::{
    container_state::{ContainerState, Ended, Role, State, reason},
    sandbox::Sandbox,
};
use crate::network::GATEWAY;

/// Everything a status is made from.
#[derive(Debug)]
pub(crate) struct Inputs<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) sandbox: Option<&'a Sandbox>,
    pub(crate) containers: &'a [ContainerState],
    pub(crate) started_at: Timestamp,
    pub(crate) policy: &'a str,
}

/// Conditions with the time of their last change; kept by the worker across statuses.
#[derive(Debug, Default)]
pub(crate) struct Conditions(BTreeMap<&'static str, PodCondition>);

impl Conditions {
    /// Takes over the times of an earlier status.
    pub(crate) fn adopt(pod: &Pod) -> Self {
        let known = pod
            .status
            .iter()
            .flat_map(|status| status.conditions.iter().flatten());
        Self(
            known
                .filter_map(|condition| {
                    Some((
                        OWN.into_iter().find(|own| *own == condition.type_)?,
                        condition.clone(),
                    ))
                })
                .collect(),
        )
    }

    fn set(
        &mut self,
        type_: &'static str,
        status: bool,
        reason: Option<&str>,
        message: Option<String>,
    ) {
        let status = if status { "True" } else { "False" };
        let changed = self
            .0
            .get(type_)
            .filter(|old| old.status == status)
            .and_then(|old| old.last_transition_time.clone());
        let condition = PodCondition {
            type_: type_.into(),
            status: status.into(),
            reason: reason.map(Into::into),
            message,
            last_transition_time: Some(changed.unwrap_or_else(|| Time(Timestamp::now()))),
            ..Default::default()
        };
        self.0.insert(type_, condition);
    }
}

/// Conditions the node owns, in the order it lists them.
const OWN: [&str; 5] = [
    "PodReadyToStartContainers",
    "Initialized",
    "Ready",
    "ContainersReady",
    "PodScheduled",
];

/// The phase of a pod.
pub(crate) fn phase(containers: &[ContainerState], policy: &str) -> &'static str {
    let init_failed = containers.iter().any(|c| {
        c.role == Role::Init
            && c.ended()
                .is_some_and(|ended| ended.exit.code != 0 && !c.restarts_after(&ended.exit, policy))
    });
    if init_failed {
        return "Failed";
    }
    if containers.iter().any(|c| c.role != Role::Main && !c.done()) {
        return "Pending";
    }
    let main = || containers.iter().filter(|c| c.role == Role::Main);
    let over = main().all(|c| {
        c.ended()
            .is_some_and(|ended| !c.restarts_after(&ended.exit, policy))
    });
    if over {
        let failed = main().any(|c| c.ended().is_some_and(|ended| ended.exit.code != 0));
        return if failed { "Failed" } else { "Succeeded" };
    }
    let waits_for_first = main()
        .any(|c| c.last.is_none() && matches!(c.state, State::Waiting { .. } | State::Starting));
    if waits_for_first {
        "Pending"
    } else {
        "Running"
    }
}

/// The whole status.
pub(crate) fn compute(inputs: &Inputs<'_>, conditions: &mut Conditions) -> PodStatus {
    let Inputs {
        pod,
        sandbox,
        containers,
        started_at,
        policy,
    } = inputs;
    let phase = phase(containers, policy);
    let finished = matches!(phase, "Succeeded" | "Failed");
    let names = |list: Vec<&ContainerState>| {
        list.iter()
            .map(|c| c.spec.name.clone())
            .collect::<Vec<_>>()
            .join(" ")
    };

    let uninitialized: Vec<_> = containers
        .iter()
        .filter(|c| c.role != Role::Main && !c.done())
        .collect();
    let unready: Vec<_> = containers
        .iter()
        .filter(|c| c.serves() && !c.ready)
        .collect();
    conditions.set(
        "PodReadyToStartContainers",
        sandbox.is_some() && !finished,
        None,
        None,
    );
    if uninitialized.is_empty() || phase == "Succeeded" {
        conditions.set(
            "Initialized",
            true,
            (phase == "Succeeded").then_some("PodCompleted"),
            None,
        );
    } else {
        let message = format!(
            "containers with incomplete status: [{}]",
            names(uninitialized)
        );
        conditions.set(
            "Initialized",
            false,
            Some("ContainersNotInitialized"),
            Some(message),
        );
    }
    let (containers_ready, why, message) = if finished {
        (
            false,
            Some(if phase == "Succeeded" {
                "PodCompleted"
            } else {
                "PodFailed"
            }),
            None,
        )
    } else if unready.is_empty() {
        (true, None, None)
    } else {
        (
            false,
            Some("ContainersNotReady"),
            Some(format!(
                "containers with unready status: [{}]",
                names(unready)
            )),
        )
    };
    conditions.set("ContainersReady", containers_ready, why, message.clone());
    let gate = failing_gate(pod);
    match gate.filter(|_| containers_ready) {
        Some(gate) => conditions.set(
            "Ready",
            false,
            Some("ReadinessGatesNotReady"),
            Some(format!(
                "the status of pod readiness gate \"{gate}\" is not \"True\""
            )),
        ),
        None => conditions.set("Ready", containers_ready, why, message),
    }
    if !conditions.0.contains_key("PodScheduled") {
        conditions.set("PodScheduled", true, None, None);
    }

    let ip = sandbox.map(|sandbox| sandbox.ip.to_string());
    let (init, main): (Vec<_>, Vec<_>) = containers.iter().partition(|c| c.role != Role::Main);
    let statuses = |list: Vec<&ContainerState>| {
        list.into_iter()
            .map(|c| container(pod, c))
            .collect::<Vec<_>>()
    };
    PodStatus {
        phase: Some(phase.into()),
        conditions: Some(all_conditions(pod, conditions)),
        host_ip: Some(GATEWAY.to_string()),
        host_ips: Some(vec![HostIP {
            ip: GATEWAY.to_string(),
        }]),
        pod_ips: ip.clone().map(|ip| vec![PodIP { ip }]),
        pod_ip: ip,
        start_time: Some(Time(*started_at)),
        qos_class: Some(qos(pod).into()),
        init_container_statuses: (!init.is_empty()).then(|| statuses(init)),
        container_statuses: Some(statuses(main)),
        ..Default::default()
    }
}

/// Our conditions, then those of others (readiness gates) as they are.
fn all_conditions(pod: &Pod, own: &Conditions) -> Vec<PodCondition> {
    let others = pod
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    OWN.into_iter()
        .filter_map(|type_| own.0.get(type_).cloned())
        .chain(
            others
                .filter(|condition| !OWN.contains(&condition.type_.as_str()))
                .cloned(),
        )
        .collect()
}

fn failing_gate(pod: &Pod) -> Option<String> {
    let gates = pod.spec.as_ref()?.readiness_gates.as_ref()?;
    let conditions = pod
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_deref())
        .unwrap_or_default();
    gates
        .iter()
        .map(|gate| &gate.condition_type)
        .find(|gate| {
            !conditions
                .iter()
                .any(|c| c.type_ == **gate && c.status == "True")
        })
        .cloned()
}

fn container_id(pod: &Pod, name: &str, attempt: u32) -> String {
    format!(
        "mesozoic://{}.{name}.{attempt}",
        pod.metadata.uid.as_deref().unwrap_or_default()
    )
}

fn container(pod: &Pod, container: &ContainerState) -> ContainerStatus {
    let name = container.spec.name.as_str();
    let terminated = |ended: &Ended| ApiState {
        terminated: Some(ContainerStateTerminated {
            exit_code: ended.exit.code,
            signal: None,
            reason: Some(reason(&ended.exit).into()),
            message: ended
                .message
                .clone()
                .or_else(|| ended.exit.start_error.clone()),
            started_at: Some(Time(
                ended.exit.started_at.unwrap_or(ended.exit.finished_at),
            )),
            finished_at: Some(Time(ended.exit.finished_at)),
            container_id: Some(container_id(pod, name, ended.attempt)),
        }),
        ..Default::default()
    };
    let waiting = |reason: &str, message: Option<String>| ApiState {
        waiting: Some(ContainerStateWaiting {
            reason: Some(reason.into()),
            message,
        }),
        ..Default::default()
    };
    let (state, id) = match &container.state {
        State::Waiting {
            reason, message, ..
        } => (waiting(reason, message.clone()), None),
        // While a restart is under way the last end is the better story.
        State::Starting => match &container.last {
            Some(last) => (terminated(last), None),
            None => (waiting("ContainerCreating", None), None),
        },
        State::Running(running) => {
            let running = ContainerStateRunning {
                started_at: Some(Time(running.state.started_at)),
            };
            let state = ApiState {
                running: Some(running),
                ..Default::default()
            };
            (state, Some(container_id(pod, name, container.attempt)))
        }
        State::Ended(ended) => (
            terminated(ended),
            Some(container_id(pod, name, ended.attempt)),
        ),
    };
    let image = container.spec.image.clone().unwrap_or_default();
    let completed = container.role == Role::Init && container.done();
    ContainerStatus {
        name: name.into(),
        image,
        image_id: container.image_id.clone(),
        container_id: id.or_else(|| {
            container
                .last
                .as_ref()
                .map(|last| container_id(pod, name, last.attempt))
        }),
        ready: completed || container.ready,
        started: Some(container.started),
        restart_count: i32::try_from(container.attempt).unwrap_or(i32::MAX),
        state: Some(state),
        last_state: Some(container.last.as_ref().map(terminated).unwrap_or_default()),
        ..Default::default()
    }
}

/// Guaranteed, Burstable or BestEffort, by requests and limits of CPU and memory.
fn qos(pod: &Pod) -> &'static str {
    let Some(spec) = &pod.spec else {
        return "BestEffort";
    };
    let all = || {
        spec.containers
            .iter()
            .chain(spec.init_containers.iter().flatten())
    };
    let lists = |c: &k8s_openapi::api::core::v1::Container| {
        let resources = c.resources.clone().unwrap_or_default();
        (
            resources.requests.unwrap_or_default(),
            resources.limits.unwrap_or_default(),
        )
    };
    if all().all(|c| {
        let (requests, limits) = lists(c);
        requests.is_empty() && limits.is_empty()
    }) {
        return "BestEffort";
    }
    let guaranteed = all().all(|c| {
        let (requests, limits) = lists(c);
        ["cpu", "memory"].iter().all(|name| {
            limits.contains_key(*name)
                && requests
                    .get(*name)
                    .is_none_or(|r| Some(r) == limits.get(*name))
        })
    });
    if guaranteed {
        "Guaranteed"
    } else {
        "Burstable"
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{Container, PodSpec};

    use super::*;
    use crate::container::Exit;

    fn ended(code: i32) -> State {
        let exit = Exit {
            code,
            signal: None,
            start_error: None,
            started_at: None,
            finished_at: Timestamp::UNIX_EPOCH,
        };
        State::Ended(Ended {
            attempt: 0,
            exit,
            message: None,
        })
    }

    fn container(role: Role, state: State) -> ContainerState {
        ContainerState {
            state,
            ..ContainerState::new(
                Container {
                    name: "c".into(),
                    ..Default::default()
                },
                role,
            )
        }
    }

    fn status(containers: &[ContainerState], policy: &str) -> PodStatus {
        let pod = Pod {
            spec: Some(PodSpec::default()),
            ..Default::default()
        };
        let inputs = Inputs {
            pod: &pod,
            sandbox: None,
            containers,
            started_at: Timestamp::UNIX_EPOCH,
            policy,
        };
        compute(&inputs, &mut Conditions::default())
    }

    fn condition(status: &PodStatus, type_: &str) -> (String, Option<String>) {
        let condition = status
            .conditions
            .iter()
            .flatten()
            .find(|c| c.type_ == type_)
            .unwrap();
        (condition.status.clone(), condition.reason.clone())
    }

    #[test]
    fn a_new_pod_is_pending_and_waits_for_its_container() {
        let status = status(
            &[ContainerState::new(Container::default(), Role::Main)],
            "Always",
        );
        assert_eq!(status.phase.as_deref(), Some("Pending"));
        assert_eq!(
            condition(&status, "Ready"),
            ("False".into(), Some("ContainersNotReady".into()))
        );
        assert_eq!(condition(&status, "Initialized").0, "True");
        let state = status.container_statuses.unwrap()[0].state.clone().unwrap();
        assert_eq!(
            state.waiting.unwrap().reason.as_deref(),
            Some("ContainerCreating")
        );
    }

    #[test]
    fn phases_of_finished_pods() {
        for (code, policy, expected) in [
            (0, "Never", "Succeeded"),
            (1, "Never", "Failed"),
            (0, "OnFailure", "Succeeded"),
            (0, "Always", "Running"),
        ] {
            assert_eq!(
                phase(&[container(Role::Main, ended(code))], policy),
                expected,
                "{code} {policy}"
            );
        }
        let failed_init = [
            container(Role::Init, ended(1)),
            ContainerState::new(Container::default(), Role::Main),
        ];
        assert_eq!(phase(&failed_init, "Never"), "Failed");
        assert_eq!(phase(&failed_init, "Always"), "Pending");
    }

    #[test]
    fn a_completed_pod_says_so_in_its_conditions() {
        let status = status(&[container(Role::Main, ended(0))], "Never");
        assert_eq!(
            condition(&status, "Ready"),
            ("False".into(), Some("PodCompleted".into()))
        );
        assert_eq!(
            condition(&status, "Initialized"),
            ("True".into(), Some("PodCompleted".into()))
        );
        let terminated = status.container_statuses.unwrap()[0]
            .state
            .clone()
            .unwrap()
            .terminated
            .unwrap();
        assert_eq!(terminated.reason.as_deref(), Some("Completed"));
    }

    #[test]
    fn an_unchanged_condition_keeps_its_time() {
        let mut conditions = Conditions::default();
        conditions.set("Ready", false, None, None);
        let first = conditions.0["Ready"].last_transition_time.clone();
        conditions.set("Ready", false, Some("ContainersNotReady"), None);
        assert_eq!(conditions.0["Ready"].last_transition_time, first);
    }
}
