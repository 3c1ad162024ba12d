//! The binary, as people and scripts run it.
#![allow(clippy::unwrap_used)]

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::TcpListener,
    process::Command,
};

fn meshload() -> Command {
    Command::new(env!("CARGO_BIN_EXE_meshload"))
}

#[test]
fn gen_writes_as_many_services_as_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let output = meshload()
        .args(["gen", "--services", "250", "--dir"])
        .arg(folder.path())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let mut hosts = std::collections::BTreeSet::new();
    let mut addresses = std::collections::BTreeSet::new();
    for file in std::fs::read_dir(folder.path()).unwrap() {
        let path = file.unwrap().path();
        assert_eq!(path.extension().unwrap(), "yaml");
        let text = std::fs::read_to_string(path).unwrap();
        for line in text.lines().map(str::trim) {
            if line.starts_with("hosts:") {
                assert!(hosts.insert(line.to_owned()), "{line}");
            }
            if line.starts_with("- address:") {
                assert!(addresses.insert(line.to_owned()), "{line}");
            }
        }
    }
    assert_eq!((hosts.len(), addresses.len()), (250, 500));
}

#[test]
fn http_counts_outcomes() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // Two connections are kept alive; every other answer is a 503.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                let mut number = 0;
                while let Some(Ok(line)) = lines.next() {
                    if line.is_empty() {
                        let status = if number % 2 == 0 {
                            "200 OK"
                        } else {
                            "503 Unavailable"
                        };
                        number += 1;
                        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 2\r\n\r\nok");
                        stream.write_all(answer.as_bytes()).unwrap();
                    }
                }
            });
        }
    });
    let url = format!("http://{address}/");
    let output = meshload()
        .args([
            "http",
            &url,
            "--connections",
            "2",
            "--requests",
            "40",
            "-o",
            "json",
        ])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["requests"], 40);
    assert_eq!(
        report["outcomes"],
        serde_json::json!({"200": 20, "503": 20})
    );
    assert!(
        report["p99Milliseconds"].as_f64().unwrap() >= report["p50Milliseconds"].as_f64().unwrap()
    );
}

#[test]
fn a_target_that_is_not_there_is_named() {
    let address = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let output = meshload()
        .args(["ads", "--proxies", "2", "--target", &address.to_string()])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        text.contains(&format!("--target {address}: cannot connect")),
        "{text}"
    );
}
