//! DestinationRules by host: merged per namespace, most specific host first.

use std::sync::Arc;

use ahash::AHashMap;

use crate::{
    compile::{DestinationRuleConfig, Policy, SubsetConfig},
    model::{Labels, Service, Visibility, host},
    report::{Report, metric},
};

/// All rules of one namespace for one host. The policy of the first rule that has one stands; subsets of later ones are
/// added.
#[derive(Clone, Debug, PartialEq)]
pub struct MergedRule {
    /// Host of the rules; may be a wildcard.
    pub host: Arc<str>,
    /// The first rule: its name stands in metadata.
    pub first: Arc<DestinationRuleConfig>,
    /// Every rule that took part, in order.
    pub parts: Vec<Arc<DestinationRuleConfig>>,
    subsets: Vec<SubsetConfig>,
}

impl MergedRule {
    /// Subsets in order.
    pub fn subsets(&self) -> &[SubsetConfig] {
        &self.subsets
    }

    /// Labels of a subset.
    pub fn subset(&self, name: &str) -> Option<&SubsetConfig> {
        self.subsets.iter().find(|s| &*s.name == name)
    }

    /// Labels of a subset.
    pub fn subset_labels(&self, name: &str) -> Option<&Arc<Labels>> {
        self.subset(name).map(|s| &s.labels)
    }

    /// The policy of a cluster: rule level, then subset level on top, each with its own settings for the port if it
    /// has some.
    pub fn policy(&self, subset: &str, port: u32) -> Policy {
        let with_policy = self.parts.iter().find(|p| p.spec.traffic_policy.is_some());
        let base = with_policy.unwrap_or(&self.first).policy.for_port(port);
        match self.subset(subset) {
            Some(subset) => base.overlaid(subset.policy.for_port(port)),
            None => base.clone(),
        }
    }

    fn same_parts(&self, parts: &[Arc<DestinationRuleConfig>]) -> bool {
        self.parts.len() == parts.len()
            && self.parts.iter().zip(parts).all(|(a, b)| Arc::ptr_eq(a, b))
    }
}

type Parts = Vec<Arc<DestinationRuleConfig>>;

/// Rules of one namespace.
#[derive(Clone, Debug, Default)]
struct Namespace {
    exact: AHashMap<Arc<str>, Arc<MergedRule>>,
    /// Longest first.
    wildcards: Vec<Arc<MergedRule>>,
}

impl Namespace {
    fn find(&self, hostname: &str) -> Option<&Arc<MergedRule>> {
        self.exact.get(hostname).or_else(|| {
            self.wildcards
                .iter()
                .find(|r| host::subset_of(hostname, &r.host))
        })
    }
}

/// All rules. Rebuilt when a rule changed, in O(rules); merged rules whose parts are the same are taken over.
#[derive(Clone, Debug, Default)]
pub struct RuleIndex {
    own: AHashMap<Arc<str>, Namespace>,
    exported: AHashMap<Arc<str>, Namespace>,
    root: Arc<str>,
}

impl RuleIndex {
    pub(super) fn new(
        rules: &[Arc<DestinationRuleConfig>],
        root: Arc<str>,
        previous: Option<&RuleIndex>,
        report: &mut Report,
    ) -> RuleIndex {
        let own = index(rules.iter(), previous.map(|p| &p.own), report);
        let exported = rules.iter().filter(|r| r.visibility == Visibility::Public);
        // Duplicate subsets were reported above.
        let exported = index(
            exported,
            previous.map(|p| &p.exported),
            &mut Report::default(),
        );
        RuleIndex {
            own,
            exported,
            root,
        }
    }

    /// The rule that clients of a namespace follow for a service.
    pub fn find(&self, client_namespace: &str, service: &Service) -> Option<&Arc<MergedRule>> {
        let client = (client_namespace != &*self.root)
            .then(|| self.own.get(client_namespace))
            .flatten();
        client
            .and_then(|rules| rules.find(&service.hostname))
            .or_else(|| {
                self.exported
                    .get(&service.namespace)?
                    .find(&service.hostname)
            })
            .or_else(|| self.exported.get(&self.root)?.find(&service.hostname))
    }
}

fn index<'a>(
    rules: impl Iterator<Item = &'a Arc<DestinationRuleConfig>>,
    previous: Option<&AHashMap<Arc<str>, Namespace>>,
    report: &mut Report,
) -> AHashMap<Arc<str>, Namespace> {
    // By namespace and host.
    let mut groups: AHashMap<(Arc<str>, Arc<str>), Parts> = AHashMap::new();
    for rule in rules {
        let key = (Arc::from(rule.meta.namespace.as_str()), rule.host.clone());
        groups.entry(key).or_default().push(rule.clone());
    }
    let mut out: AHashMap<Arc<str>, Namespace> = AHashMap::new();
    for ((namespace, hostname), parts) in groups {
        let before = previous.and_then(|p| p.get(&namespace)).and_then(|n| {
            n.exact
                .get(&hostname)
                .or_else(|| n.wildcards.iter().find(|r| r.host == hostname))
        });
        let merged = match before {
            Some(merged) if merged.same_parts(&parts) => {
                note_duplicates(&parts, report);
                merged.clone()
            }
            _ => merge(hostname.clone(), parts, report),
        };
        let entry = out.entry(namespace).or_default();
        if host::is_wildcard(&hostname) {
            entry.wildcards.push(merged);
        } else {
            entry.exact.insert(hostname, merged);
        }
    }
    for namespace in out.values_mut() {
        namespace
            .wildcards
            .sort_by(|a, b| host::by_specificity(&a.host, &b.host));
    }
    out
}

fn merge(
    host: Arc<str>,
    parts: Vec<Arc<DestinationRuleConfig>>,
    report: &mut Report,
) -> Arc<MergedRule> {
    note_duplicates(&parts, report);
    let mut subsets: Vec<SubsetConfig> = Vec::new();
    for subset in parts.iter().flat_map(|p| &p.subsets) {
        if subsets.iter().all(|s| s.name != subset.name) {
            subsets.push(subset.clone());
        }
    }
    let first = parts[0].clone();
    Arc::new(MergedRule {
        host,
        first,
        parts,
        subsets,
    })
}

fn note_duplicates(parts: &[Arc<DestinationRuleConfig>], report: &mut Report) {
    let mut seen: Vec<&str> = Vec::new();
    for part in parts {
        for subset in &part.subsets {
            if seen.contains(&&*subset.name) {
                let key = format!("{}.{}:{}", part.meta.name, part.meta.namespace, subset.name);
                let message = format!(
                    "subset {:?} of {} is declared before; the first declaration stands",
                    subset.name, part.host
                );
                report.event(metric::DESTRULE_SUBSETS, key, message);
            } else {
                seen.push(&subset.name);
            }
        }
    }
}
