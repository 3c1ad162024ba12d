//! The arithmetic of a rollout: how large each ReplicaSet should be next. Pure.
//!
//! A step is computed from what the ReplicaSets ask for (`spec.replicas`) and what they have (`available`); the
//! controller carries out one step per look and looks again when the ReplicaSets' status changes.

use std::cmp::Reverse;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// What the plan needs to know of one ReplicaSet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Set {
    pub(crate) name: String,
    pub(crate) created: Timestamp,
    /// spec.replicas
    pub(crate) wanted: i32,
    /// status.availableReplicas
    pub(crate) available: i32,
    /// Annotation `deployment.kubernetes.io/desired-replicas`.
    pub(crate) desired_annotation: Option<i32>,
    /// Annotation `deployment.kubernetes.io/max-replicas`.
    pub(crate) max_annotation: Option<i32>,
}

/// What the plan needs to know of the Deployment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Goal {
    pub(crate) replicas: i32,
    pub(crate) max_surge: i32,
    pub(crate) max_unavailable: i32,
    pub(crate) rolling: bool,
    /// status.replicas, for ReplicaSets that carry no max-replicas annotation.
    pub(crate) status_replicas: i32,
}

/// A ReplicaSet and its next size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Resize {
    pub(crate) name: String,
    pub(crate) to: i32,
}

/// A count or a percentage of `total`; percentages of a surge are rounded up, of unavailability down.
/// `None` for text that is neither.
pub(crate) fn resolve(value: &IntOrString, total: i32, round_up: bool) -> Option<i32> {
    match value {
        IntOrString::Int(n) => Some(*n),
        IntOrString::String(text) => {
            let percent: i64 = text.strip_suffix('%')?.trim().parse().ok()?;
            let product = percent.checked_mul(total.into())?;
            let rounded = if round_up {
                (product + 99).div_euclid(100)
            } else {
                product.div_euclid(100)
            };
            i32::try_from(rounded).ok()
        }
    }
}

/// The pair (maxSurge, maxUnavailable) as counts. Both zero would never move: one pod may then be unavailable.
pub(crate) fn fence_posts(
    surge: Option<&IntOrString>,
    unavailable: Option<&IntOrString>,
    replicas: i32,
) -> (i32, i32) {
    let quarter = IntOrString::String("25%".to_owned());
    let surge = resolve(surge.unwrap_or(&quarter), replicas, true)
        .unwrap_or(0)
        .max(0);
    let unavailable = resolve(unavailable.unwrap_or(&quarter), replicas, false)
        .unwrap_or(0)
        .max(0);
    let unavailable = if surge == 0 && unavailable == 0 {
        1
    } else {
        unavailable
    };
    (surge, unavailable.min(replicas.max(0)))
}

/// The size a new ReplicaSet is to have now, given all others.
pub(crate) fn new_set_size(goal: &Goal, current: i32, others: &[Set]) -> i32 {
    if !goal.rolling {
        return goal.replicas;
    }
    let total: i32 = current + others.iter().map(|s| s.wanted).sum::<i32>();
    let most = goal.replicas + goal.max_surge;
    if total >= most {
        // No room: what it has is what it keeps, unless the Deployment shrank below it.
        return current.min(goal.replicas);
    }
    current + (most - total).min(goal.replicas - current)
}

/// Shrinks old ReplicaSets as far as availability allows: first the pods that are not available anyway, then others.
pub(crate) fn shrink_old(goal: &Goal, new: &Set, old: &[Set]) -> Vec<Resize> {
    let mut old: Vec<Set> = old.iter().filter(|s| s.wanted > 0).cloned().collect();
    if old.is_empty() {
        return Vec::new();
    }
    old.sort_by(|a, b| a.created.cmp(&b.created).then_with(|| a.name.cmp(&b.name)));
    let before: Vec<i32> = old.iter().map(|s| s.wanted).collect();
    let all = old.iter().map(|s| s.wanted).sum::<i32>() + new.wanted;
    let least = goal.replicas - goal.max_unavailable;
    let new_unavailable = new.wanted - new.available;
    let mut budget = all - least - new_unavailable;
    if budget <= 0 {
        return Vec::new();
    }
    for set in &mut old {
        let unhealthy = (set.wanted - set.available).clamp(0, budget);
        set.wanted -= unhealthy;
        budget -= unhealthy;
    }
    let mut spare =
        old.iter().map(|s| s.available.min(s.wanted)).sum::<i32>() + new.available - least;
    for set in &mut old {
        let taken = set.wanted.min(spare).max(0);
        set.wanted -= taken;
        spare -= taken;
    }
    old.into_iter()
        .zip(before)
        .filter(|(set, before)| set.wanted != *before)
        .map(|(set, _)| Resize {
            name: set.name,
            to: set.wanted,
        })
        .collect()
}

/// Distributes a change of the Deployment's own size. `new` is the ReplicaSet of the current template, if it exists.
pub(crate) fn scale(goal: &Goal, new: Option<&Set>, old: &[Set]) -> Vec<Resize> {
    let active: Vec<&Set> = new
        .into_iter()
        .chain(old)
        .filter(|s| s.wanted > 0)
        .collect();
    // One set holds everything (or none does and the newest shall): it gets the whole size.
    let sole = match active.as_slice() {
        [] => new.or_else(|| old.iter().max_by(|a, b| a.created.cmp(&b.created))),
        [one] => Some(*one),
        _ => None,
    };
    if active.len() <= 1 {
        return sole
            .filter(|set| set.wanted != goal.replicas)
            .map(|set| Resize {
                name: set.name.clone(),
                to: goal.replicas,
            })
            .into_iter()
            .collect();
    }
    if new.is_some_and(|n| {
        n.wanted == goal.replicas
            && n.desired_annotation == Some(goal.replicas)
            && n.available == goal.replicas
    }) {
        return old
            .iter()
            .filter(|s| s.wanted > 0)
            .map(|s| Resize {
                name: s.name.clone(),
                to: 0,
            })
            .collect();
    }
    if goal.rolling {
        proportional(goal, active)
    } else {
        Vec::new()
    }
}

/// In the middle of a rollout every ReplicaSet gets its share of the difference; what rounding leaves goes to the largest.
fn proportional(goal: &Goal, mut sets: Vec<&Set>) -> Vec<Resize> {
    let total: i32 = sets.iter().map(|s| s.wanted).sum();
    let allowed = if goal.replicas > 0 {
        goal.replicas + goal.max_surge
    } else {
        0
    };
    let to_add = allowed - total;
    if to_add > 0 {
        sets.sort_by_key(|s| (Reverse(s.wanted), Reverse(s.created), s.name.clone()));
    } else {
        sets.sort_by_key(|s| (Reverse(s.wanted), s.created, s.name.clone()));
    }
    let mut added = 0;
    let mut sizes: Vec<(&Set, i32)> = Vec::with_capacity(sets.len());
    for set in sets {
        let share = if to_add == 0 || added == to_add {
            0
        } else {
            fraction(goal, set)
        };
        let rest = to_add - added;
        let share = if to_add > 0 {
            share.clamp(0, rest)
        } else {
            share.clamp(rest.min(0), 0)
        };
        sizes.push((set, set.wanted + share));
        added += share;
    }
    if let Some((_, size)) = sizes.first_mut() {
        *size = (*size + to_add - added).max(0);
    }
    // Also sets whose size stays: their annotations must say what they were sized for, or the change is seen again.
    sizes
        .into_iter()
        .map(|(set, size)| Resize {
            name: set.name.clone(),
            to: size,
        })
        .collect()
}

fn fraction(goal: &Goal, set: &Set) -> i32 {
    if goal.replicas == 0 {
        return -set.wanted;
    }
    let was_allowed = set
        .max_annotation
        .filter(|m| *m > 0)
        .unwrap_or(goal.status_replicas);
    if was_allowed <= 0 {
        return 0;
    }
    let share =
        f64::from(set.wanted) * f64::from(goal.replicas + goal.max_surge) / f64::from(was_allowed);
    #[expect(
        clippy::cast_possible_truncation,
        reason = "`as` saturates, and sizes are far below i32::MAX"
    )]
    let rounded = share.round() as i32;
    rounded - set.wanted
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn goal(replicas: i32, max_surge: i32, max_unavailable: i32) -> Goal {
        Goal {
            replicas,
            max_surge,
            max_unavailable,
            rolling: true,
            status_replicas: replicas,
        }
    }

    fn set(name: &str, wanted: i32, available: i32) -> Set {
        Set {
            name: name.into(),
            created: Timestamp::UNIX_EPOCH,
            wanted,
            available,
            desired_annotation: None,
            max_annotation: None,
        }
    }

    fn sizes(resizes: &[Resize]) -> Vec<(&str, i32)> {
        resizes.iter().map(|r| (r.name.as_str(), r.to)).collect()
    }

    #[test]
    fn fence_posts_round_surge_up_and_unavailable_down() {
        let percent = |p: &str| IntOrString::String(p.into());
        for (surge, unavailable, replicas, expected) in [
            (None, None, 2, (1, 0)),
            (None, None, 4, (1, 1)),
            (None, None, 10, (3, 2)),
            (Some(percent("0%")), Some(percent("0%")), 5, (0, 1)),
            (
                Some(IntOrString::Int(0)),
                Some(IntOrString::Int(9)),
                3,
                (0, 3),
            ),
            (Some(percent("100%")), Some(IntOrString::Int(0)), 3, (3, 0)),
            (
                Some(percent("nonsense")),
                Some(IntOrString::Int(0)),
                3,
                (0, 1),
            ),
        ] {
            assert_eq!(
                fence_posts(surge.as_ref(), unavailable.as_ref(), replicas),
                expected,
                "{surge:?} {unavailable:?}"
            );
        }
    }

    #[test]
    fn the_new_set_grows_into_the_room_there_is() {
        for (goal, current, others, expected) in [
            (goal(2, 1, 0), 0, vec![set("o", 2, 2)], 1),
            (goal(2, 1, 0), 1, vec![set("o", 2, 2)], 1),
            (goal(2, 1, 0), 1, vec![set("o", 1, 1)], 2),
            (goal(2, 1, 0), 2, vec![], 2),
            (goal(4, 1, 1), 0, vec![set("o", 4, 4)], 1),
            (goal(3, 0, 1), 0, vec![set("o", 3, 3)], 0),
            (goal(3, 3, 0), 0, vec![set("o", 3, 3)], 3),
            (
                Goal {
                    rolling: false,
                    ..goal(3, 0, 0)
                },
                0,
                vec![set("o", 3, 3)],
                3,
            ),
        ] {
            assert_eq!(
                new_set_size(&goal, current, &others),
                expected,
                "{goal:?} {current} {others:?}"
            );
        }
    }

    #[test]
    fn old_sets_shrink_only_as_availability_allows() {
        for (goal, new, old, expected) in [
            // The new pod is not ready: nothing may go.
            (goal(2, 1, 0), set("n", 1, 0), vec![set("o", 2, 2)], vec![]),
            (
                goal(2, 1, 0),
                set("n", 1, 1),
                vec![set("o", 2, 2)],
                vec![("o", 1)],
            ),
            (
                goal(2, 1, 0),
                set("n", 2, 2),
                vec![set("o", 1, 1)],
                vec![("o", 0)],
            ),
            // Pods that never became available go first, whatever the new set does.
            (
                goal(2, 1, 0),
                set("n", 1, 0),
                vec![set("bad", 1, 0), set("o", 2, 2)],
                vec![("bad", 0)],
            ),
            (
                goal(4, 1, 1),
                set("n", 1, 0),
                vec![set("o", 4, 4)],
                vec![("o", 3)],
            ),
            (
                goal(3, 0, 1),
                set("n", 0, 0),
                vec![set("o", 3, 3)],
                vec![("o", 2)],
            ),
            (
                goal(3, 3, 0),
                set("n", 3, 2),
                vec![set("a", 2, 2), set("b", 1, 1)],
                vec![("a", 0)],
            ),
        ] {
            let resizes = shrink_old(&goal, &new, &old);
            assert_eq!(sizes(&resizes), expected, "{goal:?} {new:?} {old:?}");
        }
    }

    #[test]
    fn a_rollout_ends_without_ever_breaking_its_fences() {
        for (replicas, surge, unavailable) in [
            (1, 1, 0),
            (2, 1, 0),
            (5, 2, 1),
            (4, 0, 1),
            (10, 3, 2),
            (3, 3, 3),
        ] {
            let goal = goal(replicas, surge, unavailable);
            let (mut new, mut old) = (set("n", 0, 0), set("o", replicas, replicas));
            for _ in 0..200 {
                new.wanted = new_set_size(&goal, new.wanted, std::slice::from_ref(&old));
                if let Some(resize) = shrink_old(&goal, &new, std::slice::from_ref(&old)).first() {
                    old.wanted = resize.to;
                    old.available = old.available.min(old.wanted);
                }
                assert!(
                    new.wanted + old.wanted <= replicas + surge,
                    "surge: {goal:?} {new:?} {old:?}"
                );
                assert!(
                    new.available + old.available >= replicas - unavailable,
                    "available: {goal:?} {new:?} {old:?}"
                );
                // One pod becomes ready per round.
                new.available = (new.available + 1).min(new.wanted);
            }
            assert_eq!(
                (new.wanted, new.available, old.wanted),
                (replicas, replicas, 0),
                "{goal:?}"
            );
        }
    }

    #[test]
    fn scaling() {
        let annotated = |s: Set, max| Set {
            max_annotation: Some(max),
            ..s
        };
        let saturated = Set {
            desired_annotation: Some(3),
            ..set("n", 3, 3)
        };
        for (goal, new, old, expected) in [
            (
                goal(5, 1, 0),
                Some(set("n", 2, 2)),
                vec![set("o", 0, 0)],
                vec![("n", 5)],
            ),
            (goal(0, 0, 0), Some(set("n", 2, 2)), vec![], vec![("n", 0)]),
            (
                goal(2, 1, 0),
                Some(set("n", 0, 0)),
                vec![set("o", 0, 0)],
                vec![("n", 2)],
            ),
            (goal(3, 1, 0), None, vec![set("o", 1, 1)], vec![("o", 3)]),
            (
                goal(3, 1, 0),
                Some(saturated),
                vec![set("o", 2, 0)],
                vec![("o", 0)],
            ),
            // 10 → 20 while 8 + 5 of at most 13 run: shares of 25 are 15 and 10 (rounded), the sum is kept.
            (
                goal(20, 5, 2),
                Some(annotated(set("n", 5, 3), 13)),
                vec![annotated(set("o", 8, 8), 13)],
                vec![("o", 15), ("n", 10)],
            ),
            (
                goal(0, 0, 0),
                Some(annotated(set("n", 5, 3), 13)),
                vec![annotated(set("o", 8, 8), 13)],
                vec![("o", 0), ("n", 0)],
            ),
        ] {
            let resizes = scale(&goal, new.as_ref(), &old);
            assert_eq!(sizes(&resizes), expected, "{goal:?} {new:?} {old:?}");
        }
    }
}
