//! A lab with Bookinfo, real Envoys and real iptables, driven as a user would: by `istioctl`, `kubectl` and HTTP.
//!
//! One lab serves all checks, one after the other, because bringing it up is what takes time. Every check applies its
//! own objects and removes them; a failed check does not hide the next ones. The lab is a folder of its own with its own
//! network namespace, so other tests run beside it, and it is taken down when the test ends, however it ends.

#![allow(missing_docs)]

mod breaker;
mod checks;
mod lab;
mod proxy;

use lab::Lab;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mesh() {
    if let Err(missing) = lab::can_run() {
        println!("skipped: {missing}");
        return;
    }
    mesh_service::install_tls_provider();
    let lab = Lab::up().await.expect("the lab comes up");
    let mut failed = Vec::new();
    for (name, check) in checks::all() {
        let began = std::time::Instant::now();
        let outcome = check(&lab).await;
        println!(
            "{} {name} ({:.1} s)",
            if outcome.is_ok() { "ok  " } else { "FAIL" },
            began.elapsed().as_secs_f64()
        );
        if let Err(error) = outcome {
            println!("     {error:#}");
            failed.push(format!("{name}: {error:#}"));
        }
    }
    if !failed.is_empty() {
        lab.print_evidence().await;
    }
    assert!(
        failed.is_empty(),
        "{} checks failed:\n{}",
        failed.len(),
        failed.join("\n")
    );
}
