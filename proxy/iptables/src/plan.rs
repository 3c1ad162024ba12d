//! One transaction from what is installed to what should be.
//!
//! Input: the text of `iptables-save` and the wanted rules. Output: text for `iptables-restore --noflush`, which the
//! kernel takes table by table, whole or not at all. In that format naming one's own chain empties it, so a re-run
//! replaces what an earlier one left; jumps into our chains that stand in built-in chains are deleted by the very line
//! under which they were saved. Rules of others are not touched.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use crate::rules::{CHAINS, Rule};

/// The transaction; empty if there is nothing to do.
pub fn transaction(saved: &str, rules: &[Rule]) -> String {
    let installed = parse(saved);
    let tables: BTreeSet<&str> = rules
        .iter()
        .map(|rule| rule.table)
        .chain(installed.keys().copied())
        .collect();
    let mut out = String::new();
    for table in tables {
        let wanted: Vec<&Rule> = rules.iter().filter(|rule| rule.table == table).collect();
        write_table(&mut out, table, installed.get(table), &wanted);
    }
    out
}

/// What of ours is installed in one table.
#[derive(Debug, Default)]
struct Installed<'a> {
    chains: BTreeSet<&'static str>,
    /// Jumps from built-in chains, as saved, without `-A `.
    jumps: Vec<&'a str>,
    /// Plain returns per interface, which -k puts before its jumps: `(interface, line)`.
    returns: Vec<(&'a str, &'a str)>,
}

fn write_table(out: &mut String, table: &str, installed: Option<&Installed<'_>>, rules: &[&Rule]) {
    let wanted: BTreeSet<&str> = rules.iter().flat_map(|rule| rule.istio_chains()).collect();
    let none = Installed::default();
    let installed = installed.unwrap_or(&none);
    let stale: Vec<&str> = installed
        .chains
        .iter()
        .copied()
        .filter(|chain| !wanted.contains(chain))
        .collect();
    let returns = installed
        .returns
        .iter()
        .filter(|(interface, _)| is_ours(interface, installed, rules));
    if rules.is_empty() && stale.is_empty() && installed.jumps.is_empty() {
        return;
    }
    // Writing to a String cannot fail.
    let _ = writeln!(out, "*{table}");
    for chain in CHAINS
        .iter()
        .filter(|chain| wanted.contains(*chain) || installed.chains.contains(*chain))
    {
        let _ = writeln!(out, ":{chain} - [0:0]");
    }
    for jump in installed
        .jumps
        .iter()
        .copied()
        .chain(returns.map(|(_, line)| *line))
    {
        let _ = writeln!(out, "-D {jump}");
    }
    for chain in stale {
        let _ = writeln!(out, "-X {chain}");
    }
    for rule in rules {
        let _ = writeln!(out, "{}", rule.line());
    }
    let _ = writeln!(out, "COMMIT");
}

/// A return for an interface is ours if a jump of ours, old or new, names that interface too.
fn is_ours(interface: &str, installed: &Installed<'_>, rules: &[&Rule]) -> bool {
    let names = |line: &str| interface_of(line) == Some(interface);
    installed.jumps.iter().any(|jump| names(jump))
        || rules
            .iter()
            .any(|rule| rule.chain == "PREROUTING" && names(&rule.spec))
}

fn parse(saved: &str) -> BTreeMap<&str, Installed<'_>> {
    let mut tables: BTreeMap<&str, Installed<'_>> = BTreeMap::new();
    let mut table = "";
    for line in saved.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = name;
        } else if let Some(rest) = line.strip_prefix(':') {
            let name = rest.split(' ').next().unwrap_or_default();
            if let Some(chain) = CHAINS.into_iter().find(|chain| *chain == name) {
                tables.entry(table).or_default().chains.insert(chain);
            }
        } else if let Some(rule) = line.strip_prefix("-A ") {
            let words: Vec<&str> = rule.split_whitespace().collect();
            if words.first().is_some_and(|chain| CHAINS.contains(chain)) {
                continue;
            }
            match (target_of(&words), interface_of(rule)) {
                (Some(target), _) if CHAINS.contains(&target) => {
                    tables.entry(table).or_default().jumps.push(rule);
                }
                (Some("RETURN"), Some(interface)) if words.len() == 5 => {
                    tables
                        .entry(table)
                        .or_default()
                        .returns
                        .push((interface, rule));
                }
                _ => {}
            }
        }
    }
    tables
}

fn target_of<'a>(words: &[&'a str]) -> Option<&'a str> {
    let at = words.iter().position(|word| *word == "-j")?;
    words.get(at + 1).copied()
}

fn interface_of(rule: &str) -> Option<&str> {
    let mut words = rule.split_whitespace();
    words.find(|word| *word == "-i")?;
    words.next()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAVED: &str = "\
*nat
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:ISTIO_OUTPUT - [0:0]
:ISTIO_INBOUND - [0:0]
:OTHERS - [0:0]
-A PREROUTING -i net1 -j ISTIO_REDIRECT
-A PREROUTING -i net1 -j RETURN
-A PREROUTING -i eth9 -j RETURN
-A PREROUTING -p tcp -j ISTIO_INBOUND
-A OUTPUT -p tcp -j ISTIO_OUTPUT
-A OUTPUT -p tcp -j OTHERS
-A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN
-A OTHERS -j ACCEPT
COMMIT
";

    fn output_rule() -> Rule {
        Rule {
            table: "nat",
            chain: "OUTPUT",
            first: false,
            spec: "-p tcp -j ISTIO_OUTPUT".into(),
        }
    }

    #[test]
    fn a_rerun_replaces_what_was_there() {
        assert_eq!(
            transaction(SAVED, &[output_rule()]),
            "*nat\n:ISTIO_INBOUND - [0:0]\n:ISTIO_OUTPUT - [0:0]\n\
             -D PREROUTING -i net1 -j ISTIO_REDIRECT\n-D PREROUTING -p tcp -j ISTIO_INBOUND\n-D OUTPUT -p tcp -j ISTIO_OUTPUT\n\
             -D PREROUTING -i net1 -j RETURN\n-X ISTIO_INBOUND\n-A OUTPUT -p tcp -j ISTIO_OUTPUT\nCOMMIT\n"
        );
    }

    #[test]
    fn cleaning_leaves_the_rules_of_others() {
        let text = transaction(SAVED, &[]);
        assert!(
            text.contains("-X ISTIO_OUTPUT") && text.contains("-X ISTIO_INBOUND"),
            "{text}"
        );
        assert!(!text.contains("OTHERS") && !text.contains("eth9"), "{text}");
    }

    #[test]
    fn nothing_to_clean_is_no_transaction() {
        assert_eq!(transaction("*nat\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n", &[]), "");
    }
}
