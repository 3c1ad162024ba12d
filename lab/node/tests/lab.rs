//! The node against a real kernel: one lab, real processes, everything at once.
//!
//! Needs root for namespaces; without it the test says so and passes. Scenarios share one lab and run side by side, except
//! those at the end that kill the daemon. The lab is torn down when the test ends, however it ends.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a panic is how a test reports"
)]

#[path = "lab/support.rs"]
mod support;

#[path = "lab/containers.rs"]
mod containers;
#[path = "lab/network.rs"]
mod network;
#[path = "lab/restart.rs"]
mod restart;
#[path = "lab/streams.rs"]
mod streams;

use std::panic::AssertUnwindSafe;

use futures::FutureExt as _;
use support::Lab;

macro_rules! side_by_side {
    ($lab:expr, $failed:expr, $($scenario:path),+ $(,)?) => {{
        let running = vec![
            $((stringify!($scenario), AssertUnwindSafe($scenario($lab)).catch_unwind().boxed()),)+
        ];
        let results = futures::future::join_all(running.into_iter().map(|(name, scenario)| async move {
            let began = std::time::Instant::now();
            let result = scenario.await;
            println!("{} {name} ({:.1} s)", if result.is_ok() { "ok    " } else { "FAILED" }, began.elapsed().as_secs_f32());
            (name, result.is_ok())
        })).await;
        $failed.extend(results.into_iter().filter(|(_, ok)| !ok).map(|(name, _)| name));
    }};
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lab() {
    if let Some(reason) = support::cannot_run() {
        println!("skipped: {reason}");
        return;
    }
    let mut lab = Lab::up().await;
    let mut failed: Vec<&str> = Vec::new();
    side_by_side!(
        &lab,
        failed,
        containers::an_instantly_ready_pod_is_ready_within_a_second,
        containers::init_containers_run_in_order_and_share_volumes,
        containers::volumes_show_objects_and_follow_changes,
        containers::environment_comes_from_everywhere,
        containers::a_finished_pod_tells_how_it_ended,
        containers::an_unknown_image_is_refused_with_what_is_accepted,
        containers::a_killed_process_restarts_at_once_then_with_back_off,
        containers::probes_decide_on_readiness_and_life,
        containers::deletion_runs_the_hook_and_waits_for_the_process,
        network::a_vip_balances_over_ready_endpoints_and_refuses_without,
        network::dns_answers_inside_a_pod,
        network::a_node_port_reaches_the_pod_from_the_host,
        streams::logs_follow_and_tail,
        streams::exec_runs_in_the_container,
        streams::port_forward_reaches_loopback_of_the_pod,
    );
    for (name, scenario) in [(
        "restart::a_killed_daemon_is_succeeded_by_one_that_adopts_its_pods",
        restart::adoption(&mut lab).boxed(),
    )] {
        if AssertUnwindSafe(scenario).catch_unwind().await.is_err() {
            failed.push(name);
        }
    }
    if AssertUnwindSafe(restart::graceful_stop(&mut lab))
        .catch_unwind()
        .await
        .is_err()
    {
        failed.push("restart::a_stopped_lab_leaves_no_process");
    }
    if !failed.is_empty() {
        lab.print_log();
    }
    drop(lab);
    assert!(failed.is_empty(), "failed scenarios: {failed:?}");
}
