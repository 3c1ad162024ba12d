//! The program around [`pilot_agent`].

use std::process::ExitCode;

fn main() -> ExitCode {
    match pilot_agent::main(std::env::args_os().collect()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("pilot-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}
