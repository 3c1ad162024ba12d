//! Logs: text for people, JSON for machines, on standard error.

use std::io::IsTerminal as _;

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One readable line per event.
    Text,
    /// One JSON object per line.
    Json,
}

/// Log flags; flatten them into a service's `Args`.
#[derive(Clone, Debug, Args)]
pub struct LogArgs {
    /// What to log: a level, or `module=level` pairs separated by commas.
    #[arg(
        long,
        env = "LOG_LEVEL",
        default_value = "info",
        global = true,
        value_name = "FILTER"
    )]
    pub log_level: String,

    /// How to write log lines.
    #[arg(
        long,
        env = "LOG_FORMAT",
        default_value = "text",
        global = true,
        value_enum
    )]
    pub log_format: LogFormat,
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter text does not parse.
    #[error(
        "--log-level {filter:?} is not understood: {source}; give a level (error, warn, info, debug, trace) or pairs like pilot=debug,kube=warn"
    )]
    Filter {
        /// What was given.
        filter: String,
        /// What the parser says.
        source: tracing_subscriber::filter::ParseError,
    },
    /// A subscriber is installed already.
    #[error("logging is already set up in this process")]
    Installed,
}

/// Installs the process's log subscriber.
pub fn init(args: &LogArgs) -> Result<(), LogError> {
    let filter = EnvFilter::try_new(&args.log_level).map_err(|source| LogError::Filter {
        filter: args.log_level.clone(),
        source,
    })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // Its complaint about a line that could not be written goes to standard error, too, and panics there: a full
        // disk would end whatever task was about to log.
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none());
    match args.log_format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    }
    .map_err(|_| LogError::Installed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_filter_says_what_is_accepted() {
        let args = LogArgs {
            log_level: "pilot=loudly".into(),
            log_format: LogFormat::Text,
        };
        let message = init(&args).expect_err("must be refused").to_string();
        assert!(
            message.contains("pilot=loudly") && message.contains("debug"),
            "{message}"
        );
    }
}
