//! The program around [`bookinfo`].

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    let outcome = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Into::into)
        .and_then(|runtime| runtime.block_on(bookinfo::run(bookinfo::Args::parse())));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bookinfo: {error:#}");
            ExitCode::FAILURE
        }
    }
}
