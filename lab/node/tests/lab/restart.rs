//! The daemon's death and end.

use crate::support::{Lab, is_ready, shell_pod, web_pod};

pub(crate) async fn adoption(lab: &mut Lab) {
    let before = lab.until_ready("instant").await;
    let door = lab.until_ready("door").await;
    lab.create(shell_pod("orphan", "sleep 1000")).await;
    lab.until_ready("orphan").await;
    lab.replace_daemon().await;
    // Same process, same address, no restart.
    let start = |pod: &k8s_openapi::api::core::v1::Pod| {
        pod.status
            .as_ref()
            .unwrap()
            .container_statuses
            .as_ref()
            .unwrap()[0]
            .state
            .as_ref()
            .unwrap()
            .running
            .as_ref()
            .unwrap()
            .started_at
            .clone()
    };
    let after = lab.until("instant", "being adopted", is_ready).await;
    assert_eq!(start(&before), start(&after));
    assert_eq!(
        before.status.as_ref().unwrap().pod_ip,
        after.status.as_ref().unwrap().pod_ip
    );
    assert_eq!(lab.exec("instant", &["hostname"]).await, "instant\n");
    assert_eq!(start(&door), start(&lab.until_ready("door").await));
    // Adopted pods can be ended, new ones started.
    lab.delete("orphan", 0).await;
    lab.until_gone("orphan").await;
    lab.create(web_pod("after", "after")).await;
    lab.until_ready("after").await;
}

pub(crate) async fn graceful_stop(lab: &mut Lab) {
    let pid = i32::try_from(lab.daemon.id()).unwrap();
    let members = lab_processes(pid);
    assert!(members.len() > 5, "{members:?}");
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(pid),
        nix::sys::signal::Signal::SIGTERM,
    )
    .unwrap();
    let daemon = &mut lab.daemon;
    let status = tokio::task::block_in_place(|| daemon.wait()).unwrap();
    assert!(status.success(), "{status:?}");
    let left: Vec<_> = members.into_iter().filter(|pid| is_running(*pid)).collect();
    assert!(left.is_empty(), "left behind: {left:?}");
    assert!(!lab.state.path().join("lab.json").exists());
}

/// Everything in the same mount namespace as the daemon.
fn lab_processes(daemon: i32) -> Vec<i32> {
    let namespace = |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    let ours = namespace(daemon).unwrap();
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| *pid != daemon && namespace(*pid).as_ref() == Some(&ours))
        .collect()
}

fn is_running(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}
