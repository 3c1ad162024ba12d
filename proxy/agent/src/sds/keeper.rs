//! The last good version of every secret that was ever asked for, as worlds of the xDS engine.
//!
//! Written by sources through [`Keeper::look_again`], and by the first request for a name; read by streams. A name is
//! looked up when it is first asked for and remembered from then on: there are as many as Envoy's config names.

use std::{
    collections::BTreeSet,
    sync::{Arc, Weak},
};

use envoy_types::pb::envoy::config::core::v3::Node;
use parking_lot::Mutex;
use pilot_xds::{
    Change, Collection, NodeError, Publisher, Resource, ResourceSource, ResourceType, Touched,
    WorldReceiver,
};

use super::material::{Material, Problem};

type Map<V> = std::collections::BTreeMap<Arc<str>, V>;

/// Where secrets come from.
///
/// A source knows its names by their form. It answers from memory, or from something as near as a small file; when
/// its answer to some name may have changed it calls [`Keeper::look_again`].
pub trait SecretSource: Send + Sync + 'static {
    /// Whether it answers for this name. Of several sources the first that does is asked.
    fn owns(&self, name: &str) -> bool;

    /// The secret as it is now.
    fn find(&self, name: &str) -> Result<Material, Problem>;
}

/// See the [module](self).
pub struct Keeper {
    sources: Vec<Arc<dyn SecretSource>>,
    state: Mutex<State>,
    publisher: Publisher<Discovery>,
}

#[derive(Default)]
struct State {
    /// Streams are answered: a first world was published.
    open: bool,
    entries: Map<Entry>,
}

#[derive(Default)]
struct Entry {
    /// The last good version.
    good: Option<(Material, Resource)>,
    /// What is wrong now.
    problem: Option<Problem>,
}

impl Keeper {
    /// A keeper over these sources. Nobody is answered before [`Keeper::open`].
    pub fn new(sources: Vec<Arc<dyn SecretSource>>) -> Arc<Self> {
        Arc::new(Self {
            sources,
            state: Mutex::default(),
            publisher: Publisher::default(),
        })
    }

    /// Begins to answer.
    pub fn open(&self) {
        let mut state = self.state.lock();
        if !std::mem::replace(&mut state.open, true) {
            self.publish(&state, BTreeSet::new());
        }
    }

    /// Looks again at those secrets that were asked for and of which `which` says so.
    pub fn look_again(&self, which: impl Fn(&str) -> bool) {
        let mut state = self.state.lock();
        let mut changed = BTreeSet::new();
        for (name, entry) in state.entries.iter_mut().filter(|(name, _)| which(name)) {
            if entry.take(name, self.find(name)) {
                changed.insert(name.clone());
            }
        }
        if !changed.is_empty() && state.open {
            self.publish(&state, changed);
        }
    }

    /// Names that were asked for.
    pub fn asked(&self) -> Vec<Arc<str>> {
        self.state.lock().entries.keys().cloned().collect()
    }

    pub(super) fn worlds(&self) -> WorldReceiver<Discovery> {
        self.publisher.subscribe()
    }

    fn find(&self, name: &str) -> Result<Material, Problem> {
        let owner = self.sources.iter().find(|source| source.owns(name));
        owner.map_or_else(
            || {
                let reason = "nothing here serves secrets of this name; credentialName needs USER_SDS and a Kubernetes API";
                Err(Problem::Missing(reason.to_owned()))
            },
            |source| source.find(name),
        )
    }

    /// The secret of this name, looked up if it is asked for the first time.
    fn resource(&self, name: &Arc<str>) -> Option<Resource> {
        let mut state = self.state.lock();
        let known = state.entries.contains_key(name);
        let entry = state.entries.entry(name.clone()).or_default();
        if !known {
            entry.take(name, self.find(name));
        }
        entry.good.as_ref().map(|(_, resource)| resource.clone())
    }

    fn publish(&self, state: &State, changed: BTreeSet<Arc<str>>) {
        let good = state.entries.iter();
        let world = good.filter_map(|(name, e)| Some((name.clone(), e.good.as_ref()?.1.clone())));
        self.publisher
            .publish(Arc::new(world.collect()), Changed(changed));
    }
}

impl Entry {
    /// Takes in what a source found; whether clients are to be told.
    fn take(&mut self, name: &Arc<str>, found: Result<Material, Problem>) -> bool {
        let material = match found {
            Ok(material) => material,
            Err(problem) => {
                if self.problem.as_ref() != Some(&problem) {
                    let fate = if self.good.is_some() {
                        "the last good version stays"
                    } else {
                        "connections that need it are refused"
                    };
                    tracing::warn!(secret = %name, %problem, "no usable secret; {fate}");
                    self.problem = Some(problem);
                }
                return false;
            }
        };
        let recovered = self.problem.take().is_some();
        if self
            .good
            .as_ref()
            .is_some_and(|(before, _)| *before == material)
        {
            if recovered {
                tracing::info!(secret = %name, "the secret is as it was before");
            }
            return false;
        }
        tracing::info!(secret = %name, certificate = material.description(), "serving");
        let resource = Resource::new(name.clone(), material.encode(name));
        self.good = Some((material, resource));
        true
    }
}

/// Names whose secrets are new.
#[derive(Clone, Debug, Default)]
pub(super) struct Changed(BTreeSet<Arc<str>>);

impl Change for Changed {
    fn merge(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    fn is_endpoints_only(&self) -> bool {
        false
    }
}

/// The keeper as the engine sees it.
pub(super) struct Discovery(Weak<Keeper>);

impl Discovery {
    pub(super) fn new(keeper: &Arc<Keeper>) -> Self {
        Self(Arc::downgrade(keeper))
    }
}

impl ResourceSource for Discovery {
    type World = Map<Resource>;
    type Change = Changed;
    type Proxy = ();

    fn attach(&self, _: &Self::World, _: &Node) -> Result<(), NodeError> {
        // Who may open the socket may have its secrets.
        Ok(())
    }

    fn touched(&self, (): &(), ty: ResourceType, change: &Changed) -> Touched {
        if ty != ResourceType::Secret || change.0.is_empty() {
            return Touched::Nothing;
        }
        let names = change.0.clone();
        Touched::Matching(vec![Arc::new(move |name| names.contains(name))])
    }

    fn collection(&self, _: &Self::World, (): &(), _: ResourceType) -> Arc<Collection> {
        Arc::default()
    }

    fn named(
        &self,
        world: &Self::World,
        (): &(),
        ty: ResourceType,
        names: &[Arc<str>],
    ) -> Vec<Option<Resource>> {
        let find = |name: &Arc<str>| {
            let known = world.get(name).cloned();
            known.or_else(|| self.0.upgrade()?.resource(name))
        };
        let secrets = ty == ResourceType::Secret;
        names
            .iter()
            .map(|name| find(name).filter(|_| secrets))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sds::material::tests::pem;

    /// One secret that a test changes.
    #[derive(Default)]
    struct One(Mutex<Option<Result<Material, Problem>>>);

    impl SecretSource for One {
        fn owns(&self, name: &str) -> bool {
            name == "one"
        }

        fn find(&self, _: &str) -> Result<Material, Problem> {
            self.0
                .lock()
                .clone()
                .unwrap_or_else(|| Err(Problem::Missing("none".to_owned())))
        }
    }

    fn material(name: &str) -> Material {
        let (chain, key) = pem(name);
        Material::pair("test", chain, key).unwrap()
    }

    #[tokio::test]
    async fn a_good_secret_is_never_replaced_by_a_bad_one() {
        let source = Arc::new(One::default());
        let keeper = Keeper::new(vec![source.clone()]);
        keeper.open();
        let discovery = Discovery::new(&keeper);
        let mut worlds = keeper.worlds();
        let ask = |worlds: &mut WorldReceiver<Discovery>, name: &str| {
            let world = worlds.borrow_and_update().clone().unwrap();
            discovery.named(&world.world, &(), ResourceType::Secret, &[name.into()])[0].clone()
        };
        let tell = |found: Result<Material, Problem>| {
            *source.0.lock() = Some(found);
            keeper.look_again(|name| name == "one");
        };
        assert!(ask(&mut worlds, "one").is_none() && ask(&mut worlds, "other").is_none());
        // Asked for before it was there: it is told when it comes.
        tell(Ok(material("a")));
        assert!(worlds.has_changed().unwrap());
        let first = ask(&mut worlds, "one").unwrap().version;
        tell(Err(Problem::Bad("broken".to_owned())));
        tell(Err(Problem::Missing("gone".to_owned())));
        assert!(!worlds.has_changed().unwrap());
        assert_eq!(ask(&mut worlds, "one").unwrap().version, first);
        tell(Ok(material("b")));
        let change = Changed(BTreeSet::from(["one".into()]));
        assert!(
            matches!(discovery.touched(&(), ResourceType::Secret, &change), Touched::Matching(p) if p[0]("one") && !p[0]("two"))
        );
        assert_ne!(ask(&mut worlds, "one").unwrap().version, first);
    }
}
