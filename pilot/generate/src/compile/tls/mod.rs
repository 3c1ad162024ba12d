//! TLS settings of users, checked: towards services ([`client`]) and at the servers of Gateways ([`server`]).
//!
//! What is left out must never let in more than the user wrote. A bad entry of a list that narrows (pins, names, cipher
//! suites) is left out alone; if nothing of a list of pins remains, whoever asked for it is left out as a whole.

mod client;
mod server;

use crate::{envoy::safe, report::Rejector};

pub(crate) use client::MAX_SNI;
pub(super) use client::client;
pub use client::{Tls, TlsPolicyMode};
pub(super) use server::server;
pub use server::{Credentials, ServerTls, TlsVersion};

/// Files of a certificate chain and its key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeyPair {
    /// Certificate chain, PEM.
    pub chain: String,
    /// Private key, PEM.
    pub key: String,
}

/// A path that can stand in the name of a secret; empty ones and bad ones are none.
fn file(path: &str, field: String, rejector: &mut Rejector<'_>) -> Option<String> {
    if path.is_empty() {
        return None;
    }
    if let Err(reason) = safe::certificate_file(path) {
        rejector.reject(field, reason, "the file is left out");
        return None;
    }
    Some(path.to_owned())
}

/// The two files of a pair; one alone is none.
fn key_pair(
    chain: (&str, String),
    key: (&str, String),
    rejector: &mut Rejector<'_>,
) -> Option<KeyPair> {
    let missing = match (chain.0.is_empty(), key.0.is_empty()) {
        (true, false) => Some(&chain.1),
        (false, true) => Some(&key.1),
        _ => None,
    };
    if let Some(field) = missing {
        let reason = "a certificate and its key belong together; accepted: both files, or none";
        rejector.reject(field.clone(), reason, "the other file is left out");
        return None;
    }
    let (chain, key) = (
        file(chain.0, chain.1, rejector),
        file(key.0, key.1, rejector),
    );
    Some(KeyPair {
        chain: chain?,
        key: key?,
    })
}

/// Names that a peer's certificate may bear.
fn names(list: &[String], field: &str, rejector: &mut Rejector<'_>) -> Vec<String> {
    let mut out: Vec<String> = Vec::with_capacity(list.len());
    for (i, name) in list.iter().enumerate() {
        if name.is_empty() {
            let reason =
                "an empty name matches no certificate; accepted: a DNS name, a URI, an IP address";
            rejector.reject(format!("{field}[{i}]"), reason, "the name is left out");
        } else if !out.contains(name) {
            out.push(name.clone());
        }
    }
    out
}
