//! Removing everything an earlier run installed, in every variant of iptables that holds some of it.

use crate::{apply::Tools, config::Config, rules::CHAINS};

/// Cleans this network namespace. That nothing is there is success.
pub fn run(tools: &Tools, config: &Config) -> anyhow::Result<()> {
    tools.clean()?;
    // The routing rule of TPROXY, if there was one.
    let (mark, table) = (config.mark.to_string(), config.table.to_string());
    crate::apply::ip_quietly(&["-4", "rule", "del", "fwmark", &mark, "lookup", &table]);
    Ok(())
}

/// What an operator would type to the same end.
pub fn as_commands(config: &Config) -> String {
    let mut out = String::new();
    for program in ["iptables", "ip6tables"] {
        for (table, builtin, chain) in [
            ("nat", "PREROUTING", "ISTIO_INBOUND"),
            ("mangle", "PREROUTING", "ISTIO_INBOUND"),
            ("nat", "OUTPUT", "ISTIO_OUTPUT"),
        ] {
            out.push_str(&format!(
                "{program} -t {table} -D {builtin} -p tcp -j {chain}\n"
            ));
        }
        for table in ["nat", "mangle"] {
            for action in ["-F", "-X"] {
                for chain in CHAINS {
                    out.push_str(&format!("{program} -t {table} {action} {chain}\n"));
                }
            }
        }
    }
    out.push_str(&format!(
        "ip -4 rule del fwmark {} lookup {}\n",
        config.mark, config.table
    ));
    out
}
