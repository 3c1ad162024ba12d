//! Since which world each config object is served in its present form.
//!
//! Written while a world is built, read by `/debug/config_distribution`, which compares the numbers here with the world
//! that each proxy has answered completely. Cost: nothing when config did not change, one lookup per object when it did.

use std::sync::Arc;

use ahash::AHashMap;
use jiff::Timestamp;
use mesh_config::{Configs, Meta, ObjectKey, TypedObject};

/// When an object came into use, in the form it has now.
#[derive(Clone, Debug)]
pub(crate) struct Introduction {
    pub(crate) meta: Arc<Meta>,
    /// The first world that has it.
    pub(crate) world: u64,
    /// When that world was made.
    pub(crate) at: Timestamp,
    object: TypedObject,
}

/// All objects in use. Immutable.
#[derive(Debug, Default)]
pub(crate) struct Introduced {
    configs: Arc<Configs>,
    by_key: AHashMap<ObjectKey, Introduction>,
}

impl Introduced {
    /// As of world `number`. The same object if no config changed.
    pub(crate) fn next(self: &Arc<Self>, configs: &Arc<Configs>, number: u64) -> Arc<Self> {
        if Arc::ptr_eq(&self.configs, configs) {
            return self.clone();
        }
        let at = Timestamp::now();
        let introduce = |object: TypedObject| {
            let key = object.meta().key();
            let same = |known: &&Introduction| {
                Arc::ptr_eq(&known.meta, object.meta()) || known.object == object
            };
            let known = self.by_key.get(&key).filter(same);
            let introduction = known.cloned().unwrap_or_else(|| Introduction {
                meta: object.meta().clone(),
                world: number,
                at,
                object,
            });
            (key, introduction)
        };
        Arc::new(Self {
            configs: configs.clone(),
            by_key: configs.iter().map(introduce).collect(),
        })
    }

    /// Every object, by kind, namespace and name.
    pub(crate) fn objects(&self) -> impl Iterator<Item = &Introduction> {
        let mut all: Vec<_> = self.by_key.iter().collect();
        all.sort_by(|a, b| a.0.cmp(b.0));
        all.into_iter().map(|(_, introduction)| introduction)
    }
}

#[cfg(test)]
mod tests {
    use mesh_config::{ConfigKind, Object};

    use super::*;

    fn gateway(name: &str, version: &str) -> TypedObject {
        let mut meta = Meta::new(ConfigKind::Gateway, "ns", name);
        meta.resource_version = version.to_owned();
        TypedObject::Gateway(Object::new(meta, Default::default()))
    }

    #[test]
    fn an_object_keeps_the_world_it_came_with_until_it_changes() {
        let first = Arc::new(Configs::from_objects([
            gateway("a", "1"),
            gateway("b", "1"),
        ]));
        let then = Arc::new(Configs::from_objects([
            gateway("a", "1"),
            gateway("b", "2"),
        ]));
        let one = Arc::new(Introduced::default()).next(&first, 1);
        let two = one.next(&first, 2).next(&then, 3);
        let worlds: Vec<_> = two.objects().map(|o| (&*o.meta.name, o.world)).collect();
        assert_eq!(worlds, [("a", 1), ("b", 3)]);
    }
}
