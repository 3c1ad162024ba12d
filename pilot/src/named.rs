//! Resources that are asked for by name, kept for one scope across the worlds that have them in common.
//!
//! A change of endpoints comes often and touches one service: it must not cost a copy of all that is kept. So successive
//! worlds share one [`Named`], and such a change removes what it touches and writes down in which world it did
//! ([`Named::touch`]). A stream that is still in an earlier world makes what it needs for itself and leaves nothing
//! behind; the others find, or put, what is right from the touch on. Whatever touches more makes a copy without the touched
//! names instead ([`Named::without`]).

use std::sync::Arc;

use ahash::AHashMap;
use parking_lot::Mutex;
use pilot_generate::Report;
use pilot_xds::Resource;

#[derive(Clone)]
struct Made {
    resource: Resource,
    /// What was found in making it, if anything.
    report: Option<Arc<Report>>,
}

/// Resources that are touched together: those of one host.
#[derive(Default)]
struct Group {
    /// The world in which they were touched last.
    touched: u64,
    made: Vec<Made>,
}

#[derive(Default)]
struct State {
    groups: AHashMap<Arc<str>, Group>,
    /// Resources in all groups.
    count: usize,
}

/// See the [module](self).
#[derive(Default)]
pub(crate) struct Named(Mutex<State>);

impl Named {
    /// Resources by name, for a stream in `world`; what is missing is made, and kept while there is room. `group` says which
    /// group a name belongs to, `None`: one of its own.
    pub(crate) fn get(
        &self,
        names: &[Arc<str>],
        world: u64,
        room: usize,
        group: impl Fn(&str) -> Option<String>,
        make: impl Fn(&str, &mut Report) -> Vec<u8>,
    ) -> Vec<Option<Resource>> {
        let groups: Vec<Arc<str>> = names
            .iter()
            .map(|name| group(name).map_or_else(|| name.clone(), Arc::from))
            .collect();
        let mut found: Vec<Option<Resource>> = {
            let state = self.0.lock();
            let find = |(name, group): (&Arc<str>, &Arc<str>)| {
                let group = state.groups.get(group).filter(|g| g.touched <= world)?;
                let made = group.made.iter().find(|m| m.resource.name == *name)?;
                Some(made.resource.clone())
            };
            names.iter().zip(&groups).map(find).collect()
        };
        if found.iter().all(Option::is_some) {
            return found;
        }
        let mut fresh: Vec<(Arc<str>, Made)> = Vec::new();
        for ((name, group), slot) in names.iter().zip(groups).zip(&mut found) {
            if slot.is_some() {
                continue;
            }
            let mut report = Report::default();
            let resource = Resource::new(name.clone(), make(name, &mut report));
            *slot = Some(resource.clone());
            let report = (!report.is_empty()).then(|| Arc::new(report));
            fresh.push((group, Made { resource, report }));
        }
        let mut state = self.0.lock();
        for (key, made) in fresh {
            if state.count >= room {
                break;
            }
            let group = state.groups.entry(key).or_default();
            let known = |m: &Made| m.resource.name == made.resource.name;
            if group.touched <= world && !group.made.iter().any(known) {
                group.made.push(made);
                state.count += 1;
            }
        }
        found
    }

    /// Forgets the resources of a group, for `world` and later ones.
    pub(crate) fn touch(&self, group: &Arc<str>, world: u64) {
        let mut state = self.0.lock();
        let entry = state.groups.entry(group.clone()).or_default();
        entry.touched = entry.touched.max(world);
        let gone = std::mem::take(&mut entry.made).len();
        state.count -= gone;
    }

    /// A copy for worlds from now on, without the names that are touched.
    pub(crate) fn without(&self, touched: impl Fn(&str) -> bool) -> Named {
        let state = self.0.lock();
        let mut copy = State::default();
        for (key, group) in &state.groups {
            let kept = group.made.iter().filter(|m| !touched(&m.resource.name));
            let made: Vec<Made> = kept.cloned().collect();
            if !made.is_empty() {
                copy.count += made.len();
                copy.groups.insert(key.clone(), Group { touched: 0, made });
            }
        }
        Named(Mutex::new(copy))
    }

    /// Adds what was found out in making what is kept.
    pub(crate) fn report(&self, out: &mut Report) {
        let state = self.0.lock();
        let made = state.groups.values().flat_map(|group| &group.made);
        for report in made.filter_map(|m| m.report.as_ref()) {
            out.merge(report);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::cell::Cell;

    use super::*;

    struct Source {
        named: Named,
        made: Cell<usize>,
    }

    impl Source {
        fn get(&self, name: &str, world: u64, content: &str) -> String {
            let group = |name: &str| name.split_once('|').map(|(_, host)| host.to_owned());
            let found = self.named.get(&[name.into()], world, 100, group, |_, _| {
                self.made.set(self.made.get() + 1);
                content.as_bytes().to_vec()
            });
            String::from_utf8(found[0].as_ref().unwrap().body.to_vec()).unwrap()
        }
    }

    fn source() -> Source {
        Source {
            named: Named::default(),
            made: Cell::new(0),
        }
    }

    #[test]
    fn what_is_touched_is_made_anew_once_and_the_rest_is_not() {
        let s = source();
        assert_eq!(s.get("1|a", 1, "old"), "old");
        assert_eq!(s.get("2|a", 1, "old"), "old");
        assert_eq!(s.get("1|b", 1, "old"), "old");
        s.named.touch(&"a".into(), 2);
        assert_eq!(s.get("1|b", 2, "new"), "old");
        assert_eq!(s.get("1|a", 2, "new"), "new");
        assert_eq!(s.get("1|a", 3, "newer"), "new");
        assert_eq!(s.get("2|a", 2, "new"), "new");
        assert_eq!(s.made.get(), 5);
    }

    #[test]
    fn a_stream_in_an_earlier_world_leaves_nothing_behind() {
        let s = source();
        s.named.touch(&"a".into(), 2);
        assert_eq!(s.get("1|a", 1, "old"), "old");
        assert_eq!(s.get("1|a", 2, "new"), "new");
        assert_eq!(s.get("1|a", 1, "old"), "old");
        assert_eq!(s.get("1|a", 2, "newer"), "new");
    }

    #[test]
    fn a_copy_goes_its_own_way() {
        let s = source();
        s.get("1|a", 1, "old");
        s.get("1|b", 1, "old");
        let copy = Source {
            named: s.named.without(|name| name == "1|a"),
            made: Cell::new(0),
        };
        assert_eq!(copy.get("1|a", 2, "new"), "new");
        assert_eq!(copy.get("1|b", 2, "new"), "old");
        assert_eq!(s.get("1|a", 1, "other"), "old");
    }

    #[test]
    fn made_up_names_are_not_remembered_without_bound() {
        let named = Named::default();
        for i in 0..1000 {
            let name: Arc<str> = i.to_string().into();
            named.get(&[name], 1, 10, |_| None, |_, _| Vec::new());
        }
        assert_eq!(named.0.lock().count, 10);
    }
}
