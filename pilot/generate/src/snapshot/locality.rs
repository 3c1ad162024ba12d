//! Locality load balancing of the mesh (`localityLbSetting`): which endpoints a client prefers, by where it runs.
//!
//! Read in two steps. What a proxy's place means under the settings is a [`Vantage`], part of its scope's key: proxies for
//! which the settings say the same share a scope. [`LocalityLb::arrange`] then gives weights or priorities to the localities
//! of one load assignment.

use std::collections::BTreeMap;

use mesh_config::mesh::LocalityLoadBalancerSetting;

use crate::model::Locality;

/// The setting, taken apart.
#[derive(Clone, Debug, PartialEq)]
pub enum LocalityLb {
    /// Shares of traffic, by the client's locality.
    Distribute(Vec<Distribute>),
    /// The nearest endpoints first; pairs of a region and the region that stands in for it.
    Failover(Vec<(String, String)>),
}

/// Where clients of a locality send their requests.
#[derive(Clone, Debug, PartialEq)]
pub struct Distribute {
    from: Pattern,
    to: Vec<(Pattern, u32)>,
}

/// A locality of which the last parts may be left open.
#[derive(Clone, Debug, PartialEq)]
struct Pattern([String; 3]);

impl Pattern {
    fn parse(text: &str) -> Pattern {
        let mut parts = text.splitn(3, '/').map(str::to_owned);
        let mut next = || parts.next().unwrap_or_default();
        Pattern([next(), next(), next()])
    }

    fn matches(&self, locality: &Locality) -> bool {
        let [region, zone, subzone] = &self.0;
        let open = |pattern: &str, part: &str| matches!(pattern, "" | "*") || pattern == part;
        (region == "*" || **region == *locality.region)
            && open(zone, &locality.zone)
            && open(subzone, &locality.subzone)
    }
}

/// What a proxy's place means under the mesh's setting.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Vantage {
    /// Nothing: no setting, no known place, or no share for it.
    #[default]
    Anywhere,
    /// The shares of this entry apply.
    Share(usize),
    /// Distances count from here.
    At(Locality),
}

/// What becomes of the endpoints of one locality.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arranged {
    /// Weight among the localities of its priority; `None`: no endpoint of it is used.
    pub weight: Option<u64>,
    /// 0 is tried first.
    pub priority: u32,
}

impl LocalityLb {
    pub(super) fn new(setting: &LocalityLoadBalancerSetting) -> LocalityLb {
        if setting.distribute.is_empty() {
            let pairs = setting.failover.iter();
            return LocalityLb::Failover(pairs.map(|f| (f.from.clone(), f.to.clone())).collect());
        }
        let entries = setting.distribute.iter().map(|d| Distribute {
            from: Pattern::parse(&d.from),
            to: d
                .to
                .iter()
                .map(|(to, weight)| (Pattern::parse(to), *weight))
                .collect(),
        });
        LocalityLb::Distribute(entries.collect())
    }

    /// What the setting means for proxies of a place.
    pub fn vantage(&self, locality: &Locality) -> Vantage {
        if locality.is_empty() {
            return Vantage::Anywhere;
        }
        match self {
            LocalityLb::Distribute(list) => list
                .iter()
                .position(|d| d.from.matches(locality))
                .map_or(Vantage::Anywhere, Vantage::Share),
            LocalityLb::Failover(_) => Vantage::At(locality.clone()),
        }
    }

    /// Arranges localities with the weights of their endpoints. `detects` says whether failing endpoints are noticed
    /// (outlier detection): without that nobody would ever fail over.
    pub fn arrange(
        &self,
        vantage: &Vantage,
        detects: bool,
        localities: &[(&Locality, u64)],
    ) -> Vec<Arranged> {
        match (self, vantage) {
            (LocalityLb::Distribute(list), Vantage::Share(i)) if *i < list.len() => {
                shares(&list[*i].to, localities)
            }
            (LocalityLb::Failover(pairs), Vantage::At(here)) if detects => {
                distances(pairs, here, localities)
            }
            _ => as_they_are(localities),
        }
    }
}

/// Weights as they come, one priority.
pub fn as_they_are(localities: &[(&Locality, u64)]) -> Vec<Arranged> {
    let each = localities.iter().map(|(_, weight)| Arranged {
        weight: Some(*weight),
        priority: 0,
    });
    each.collect()
}

/// Each entry's share is divided among the localities it stands for by their own weights; a locality that no entry names
/// gets nothing.
fn shares(to: &[(Pattern, u32)], localities: &[(&Locality, u64)]) -> Vec<Arranged> {
    let mut out = vec![
        Arranged {
            weight: None,
            priority: 0
        };
        localities.len()
    ];
    for (pattern, share) in to {
        let mine: Vec<usize> = (0..localities.len())
            .filter(|i| out[*i].weight.is_none() && pattern.matches(localities[*i].0))
            .collect();
        let total: u64 = mine.iter().map(|i| localities[*i].1).sum();
        for i in mine {
            let weight = (localities[i].1 * u64::from(*share)).div_ceil(total.max(1));
            out[i].weight = Some(weight).filter(|w| *w > 0);
        }
    }
    out
}

fn distances(
    pairs: &[(String, String)],
    here: &Locality,
    localities: &[(&Locality, u64)],
) -> Vec<Arranged> {
    let stands_in = pairs.iter().find(|(from, _)| **from == *here.region);
    let distance = |there: &Locality| -> u32 {
        if there.region != here.region {
            return match stands_in {
                Some((_, to)) if **to != *there.region => 4,
                _ => 3,
            };
        }
        match (there.zone == here.zone, there.subzone == here.subzone) {
            (true, true) => 0,
            (true, false) => 1,
            (false, _) => 2,
        }
    };
    // Priorities without gaps.
    let mut dense: BTreeMap<u32, u32> = localities.iter().map(|(l, _)| (distance(l), 0)).collect();
    for (rank, priority) in (0..).zip(dense.values_mut()) {
        *priority = rank;
    }
    let each = localities.iter().map(|(locality, weight)| Arranged {
        weight: Some(*weight),
        priority: dense[&distance(locality)],
    });
    each.collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn setting(json: serde_json::Value) -> LocalityLb {
        LocalityLb::new(&serde_json::from_value(json).unwrap())
    }

    fn arranged(
        lb: &LocalityLb,
        here: &str,
        detects: bool,
        there: &[(&str, u64)],
    ) -> Vec<(Option<u64>, u32)> {
        let localities: Vec<Locality> = there.iter().map(|(l, _)| Locality::parse(l)).collect();
        let weighted: Vec<_> = localities
            .iter()
            .zip(there)
            .map(|(l, (_, w))| (l, *w))
            .collect();
        lb.arrange(&lb.vantage(&Locality::parse(here)), detects, &weighted)
            .into_iter()
            .map(|a| (a.weight, a.priority))
            .collect()
    }

    #[test]
    fn the_nearest_come_first_and_priorities_have_no_gaps() {
        let lb = setting(serde_json::json!({"failover": [{"from": "eu", "to": "us"}]}));
        let all = [
            ("eu/a/1", 1),
            ("eu/a/2", 1),
            ("eu/b/1", 1),
            ("us/a/1", 1),
            ("asia/a/1", 1),
        ];
        let priorities = |here, there: &[(&str, u64)]| -> Vec<u32> {
            arranged(&lb, here, true, there)
                .into_iter()
                .map(|(_, p)| p)
                .collect()
        };
        assert_eq!(priorities("eu/a/1", &all), [0, 1, 2, 3, 4]);
        assert_eq!(priorities("eu/a/1", &all[2..]), [0, 1, 2]);
        assert_eq!(priorities("eu/c/1", &all), [0, 0, 0, 1, 2]);
        // No pair for this region: all others are equally far.
        assert_eq!(priorities("asia/a/1", &all), [1, 1, 1, 1, 0]);
        // Nobody would notice a failure, or nobody knows where the client is.
        assert!(
            arranged(&lb, "eu/a/1", false, &all)
                .iter()
                .all(|(_, p)| *p == 0)
        );
        assert!(arranged(&lb, "", true, &all).iter().all(|(_, p)| *p == 0));
    }

    #[test]
    fn shares_are_divided_by_weight_and_nothing_is_left_for_others() {
        let lb = setting(serde_json::json!({"distribute": [
            {"from": "eu/a/*", "to": {"eu/a/*": 70, "eu/b/*": 20, "us/*": 10}},
            {"from": "us/*", "to": {"us/*": 100}},
        ]}));
        let all = [
            ("asia/a/1", 5),
            ("eu/a/1", 1),
            ("eu/b/1", 1),
            ("eu/b/2", 2),
            ("us/x/y", 3),
        ];
        let weights = |here| -> Vec<Option<u64>> {
            arranged(&lb, here, false, &all)
                .into_iter()
                .map(|(w, _)| w)
                .collect()
        };
        // 20 × 1/3 and 20 × 2/3, rounded up.
        assert_eq!(
            weights("eu/a/9"),
            [None, Some(70), Some(7), Some(14), Some(10)]
        );
        assert_eq!(weights("us/x/y"), [None, None, None, None, Some(100)]);
        // Nothing is said for clients there.
        assert_eq!(lb.vantage(&Locality::parse("eu/b/1")), Vantage::Anywhere);
        assert_eq!(
            weights("eu/b/1"),
            [Some(5), Some(1), Some(1), Some(2), Some(3)]
        );
        // Proxies for which the same holds share a scope.
        assert_eq!(
            lb.vantage(&Locality::parse("eu/a/1")),
            lb.vantage(&Locality::parse("eu/a/2"))
        );
    }
}
