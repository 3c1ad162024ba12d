//! `testdata/in/NAME.args` (a command line; `@ipv6` gives the pod an IPv6 address) against `testdata/out/NAME.txt`.
//! `UPDATE_GOLDEN=1 cargo test -p istio-iptables` writes the expected side anew.

use std::{fs, net::IpAddr, path::Path};

use clap::Parser as _;
use istio_iptables::{Args, config::Config, rules::RuleSet};

fn words(line: &str) -> Vec<String> {
    line.split_whitespace()
        .map(|word| word.trim_matches('\'').to_owned())
        .collect()
}

fn config(line: &str) -> Result<Config, String> {
    let mut words = words(line);
    let mut addresses: Vec<IpAddr> = vec!["10.244.0.7".parse().unwrap()];
    if let Some(at) = words.iter().position(|word| word == "@ipv6") {
        words.remove(at);
        addresses.push("fd00::7".parse().unwrap());
    }
    let args = Args::try_parse_from(std::iter::once("istio-iptables".to_owned()).chain(words))
        .map_err(|error| error.to_string())?;
    Config::from_args(&args, &addresses).map_err(|error| error.to_string())
}

#[test]
fn golden() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let mut seen = 0;
    for entry in fs::read_dir(root.join("in")).unwrap() {
        let path = entry.unwrap().path();
        let line = fs::read_to_string(&path).unwrap();
        let config = config(&line).unwrap();
        let rules = RuleSet::new(&config);
        let got = format!(
            "# {}\n{config}\n\n{}\n{}",
            line.trim(),
            rules.as_commands(),
            rules.as_restore()
        );
        let out = root
            .join("out")
            .join(path.with_extension("txt").file_name().unwrap());
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&out, &got).unwrap();
        }
        let want = fs::read_to_string(&out).unwrap();
        similar_asserts::assert_eq!(want, got, "{}", path.display());
        seen += 1;
    }
    assert!(seen >= 8, "golden inputs went missing: {seen}");
}

#[test]
fn what_does_not_parse_is_refused_by_name() {
    for (line, flag, what) in [
        ("-x 10.0.0.0/8,nonsense", "-x", "nonsense"),
        ("-i 10.0.0.0/33", "-i", "10.0.0.0/33"),
        ("-b 80,http", "-b", "http"),
        ("-b '*' -d 0", "-d", "\"0\""),
        ("-o 70000", "-o", "70000"),
        ("-u istio-proxy", "-u", "istio-proxy"),
        ("-m NAT", "-m", "NAT"),
        ("-k eth0;reboot", "-k", "eth0;reboot"),
    ] {
        let message = config(line).unwrap_err();
        assert!(
            message.contains(flag) && message.contains(what),
            "{line}: {message}"
        );
        assert!(message.contains("nothing was changed"), "{line}: {message}");
    }
}

#[test]
fn root_is_exempt_only_by_default() {
    assert!(config("").unwrap().uids.contains(&0));
    let config = config("-u 1337").unwrap();
    assert_eq!((config.uids, config.gids), (vec![1337], vec![1337]));
}
