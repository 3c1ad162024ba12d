//! `istioctl`: brings up the lab, runs failure experiments, and shows what Pilot and every Envoy know.
//!
//! Results go to stdout, progress and logs to stderr, so `-o json` is one document whatever else is said.

use std::process::ExitCode;

use clap::Parser as _;

mod chaos;
mod cli;
mod connect;
mod demo;
mod experimental;
mod lab;
mod output;
mod progress;
mod proxy;
mod stop;

mod validate;
mod version;

fn main() -> ExitCode {
    let cli = match cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return cli::usage(&error),
    };
    // The only TLS provider in the house. A second installation would be an error, but this is the first line.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    match cli.run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("Error: {}", describe(&error));
            ExitCode::FAILURE
        }
    }
}

/// The causes in one line, each said once. What kube says about an API error goes on for lines: its message is enough.
fn describe(error: &anyhow::Error) -> String {
    let mut parts: Vec<String> = Vec::new();
    for cause in error.chain() {
        if let Some(api) = cause.downcast_ref::<kube::Error>() {
            parts.push(lab_chaos::kube_message(api));
            break;
        }
        let text = cause.to_string();
        if !parts.last().is_some_and(|last| last.ends_with(&text)) {
            parts.push(text);
        }
    }
    parts.join(": ")
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    #[test]
    fn causes_are_said_once_and_api_errors_briefly() {
        let status = kube::core::Status::failure("not here", "NotFound").with_code(404);
        let error = Err::<(), _>(kube::Error::Api(Box::new(status)))
            .context("reading pod a")
            .expect_err("an error");
        assert_eq!(super::describe(&error), "reading pod a: not here");
        let error = Err::<(), _>(std::io::Error::other("disk gone"))
            .context("writing b: disk gone")
            .expect_err("an error");
        assert_eq!(super::describe(&error), "writing b: disk gone");
    }
}
