//! Patches applied to one list of resources, with a check of each result and an account of what was left out.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
};

use prost::{Message, Name};
use proto_envoy::{DynamicMessage, ReflectMessage as _, json};
use proto_networking::networking::envoy_filter::ApplyTo;

use super::{Encoded, MAX_GROWTH, MAX_TOTAL_GROWTH, Side, check, compile::Patch, select::Step};
use crate::report::{Rejection, Report};

/// What is done about a patch that would spoil a resource.
const SERVED_WITHOUT: &str = "it is served without this patch";
/// What is done about one that would add a resource that cannot be.
const NOT_ADDED: &str = "it is not added";

/// A kind of resource that can be patched.
pub(super) trait Resource: Message + Name + Default + Clone {
    /// What to call it.
    const KIND: &'static str;

    fn name(&self) -> &str;

    /// Sets what makes a patched resource safer, where patches say nothing about it.
    fn tidy(&mut self) {}

    /// What only this kind asks for, beyond the rules of Envoy's API.
    fn check(&self) -> Result<(), String>;
}

/// What a patch did to a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    Nothing,
    Changed,
    Removed,
}

/// How the patches of one kind of resource work.
pub(super) struct Work<'f, M> {
    /// Changes a resource by one patch, or says why the patch cannot be applied to it.
    pub(super) apply: &'f dyn Fn(&mut M, &Patch) -> Result<Effect, String>,
    /// Says why a patched resource cannot stand beside the others of its list.
    pub(super) beside: &'f dyn Fn(&M) -> Result<(), String>,
}

/// One pass over one list.
pub(super) struct Run {
    side: Side,
    room: usize,
    /// By EnvoyFilter, field and reason: the first resource concerned, and how many.
    left_out: BTreeMap<Key, (String, usize)>,
}

/// Namespace and name of the EnvoyFilter, field, reason, kind of resource, and what was done.
type Key = (String, String, String, String, &'static str, &'static str);

impl Run {
    pub(super) fn new(side: Side) -> Run {
        Run {
            side,
            room: MAX_TOTAL_GROWTH,
            left_out: BTreeMap::new(),
        }
    }

    /// Writes down what was left out.
    pub(super) fn finish(self, report: &mut Report) {
        let lines = self.left_out.into_iter().map(|(key, (first, count))| {
            let (namespace, name, field, reason, kind, action) = key;
            let others = match count {
                1 => String::new(),
                n => format!(" (and {} more)", n - 1),
            };
            Rejection {
                kind: "EnvoyFilter",
                namespace: namespace.into(),
                name: name.into(),
                field,
                reason: format!("{kind} {first}{others}: {reason}"),
                action,
            }
        });
        report.rejections.extend(lines);
    }

    fn note<M: Resource>(&mut self, step: &Step, name: &str, reason: String, action: &'static str) {
        let meta = &step.filter.meta;
        let field = step.patch().field.clone();
        let key = (
            meta.namespace.clone(),
            meta.name.clone(),
            field,
            reason,
            M::KIND,
            action,
        );
        self.left_out
            .entry(key)
            .or_insert_with(|| (name.to_owned(), 0))
            .1 += 1;
    }

    /// The resource after these patches; nothing if one removes it. Whatever the patches do, what comes out is the
    /// original or something that passes the checks.
    pub(super) fn settle<M: Resource>(
        &mut self,
        original: M,
        steps: &[&Step],
        work: &Work<'_, M>,
    ) -> Option<Encoded<M>> {
        if steps.is_empty() {
            return Some(Encoded::plain(original));
        }
        match guarded(|| self.all_at_once(&original, steps, work)) {
            Ok(Outcome::Untouched) => return Some(Encoded::plain(original)),
            Ok(Outcome::Removed) => return None,
            Ok(Outcome::Good(encoded)) => {
                self.room -= encoded
                    .body
                    .len()
                    .saturating_sub(original.encoded_len())
                    .min(self.room);
                return Some(encoded);
            }
            // Which patch is it? Try them one by one.
            Ok(Outcome::Bad) | Err(_) => {}
        }
        self.one_by_one(original, steps, work)
    }

    fn all_at_once<M: Resource>(
        &self,
        original: &M,
        steps: &[&Step],
        work: &Work<'_, M>,
    ) -> Result<Outcome<M>, String> {
        let mut state = original.clone();
        let mut changed = false;
        for step in steps {
            match (work.apply)(&mut state, step.patch()) {
                Ok(Effect::Nothing) => {}
                Ok(Effect::Changed) => changed = true,
                Ok(Effect::Removed) => return Ok(Outcome::Removed),
                Err(_) => return Ok(Outcome::Bad),
            }
        }
        if !changed {
            return Ok(Outcome::Untouched);
        }
        state.tidy();
        Ok(match self.verify(original, &state, work) {
            Ok(body) => Outcome::Good(Encoded {
                message: state,
                body,
            }),
            Err(_) => Outcome::Bad,
        })
    }

    fn one_by_one<M: Resource>(
        &mut self,
        original: M,
        steps: &[&Step],
        work: &Work<'_, M>,
    ) -> Option<Encoded<M>> {
        let name = original.name().to_owned();
        let mut good: Option<Encoded<M>> = None;
        for step in steps {
            let now = good.as_ref().map_or(&original, |good| &good.message);
            let tried = guarded(|| {
                let mut next = now.clone();
                match (work.apply)(&mut next, step.patch())? {
                    Effect::Nothing => Ok(None),
                    Effect::Removed => Ok(Some(None)),
                    Effect::Changed => {
                        next.tidy();
                        let body = self.verify(&original, &next, work)?;
                        Ok(Some(Some(Encoded {
                            message: next,
                            body,
                        })))
                    }
                }
            });
            match tried {
                Ok(None) => {}
                Ok(Some(None)) => return None,
                Ok(Some(Some(next))) => good = Some(next),
                Err(reason) => self.note::<M>(step, &name, reason, SERVED_WITHOUT),
            }
        }
        let Some(good) = good else {
            return Some(Encoded::plain(original));
        };
        self.room -= good
            .body
            .len()
            .saturating_sub(original.encoded_len())
            .min(self.room);
        Some(good)
    }

    /// The encoded form of a patched resource, or why it cannot be served.
    fn verify<M: Resource>(
        &self,
        original: &M,
        patched: &M,
        work: &Work<'_, M>,
    ) -> Result<Vec<u8>, String> {
        if patched.name() != original.name() {
            return Err(format!(
                "the patch changes its name to {:?}; accepted: a value without name",
                patched.name()
            ));
        }
        (work.beside)(patched)?;
        let room = original
            .encoded_len()
            .saturating_add(MAX_GROWTH.min(self.room));
        match sound(patched, room) {
            Ok(body) => Ok(body),
            // What was not right before is not the patch's doing.
            Err(reason) if sound(original, usize::MAX).err().as_ref() == Some(&reason) => {
                encode(patched)
            }
            Err(reason) => Err(reason),
        }
    }

    /// What patches of a kind add to the list; `taken` says why a resource cannot stand beside those that are there.
    pub(super) fn additions<M: Resource>(
        &mut self,
        kind: ApplyTo,
        steps: &[&Step],
        list: &mut Vec<Encoded<M>>,
        taken: impl Fn(&[Encoded<M>], &M) -> Option<String>,
    ) {
        for step in steps {
            let patch = step.patch();
            if patch.apply_to != kind || !patch.is_addition() || !patch.adds_on(self.side) {
                continue;
            }
            let Some(value) = &patch.value else { continue };
            let room = MAX_GROWTH.min(self.room);
            let made = guarded(|| {
                let mut message: M = typed(value)?;
                message.tidy();
                if let Some(reason) = taken(list, &message) {
                    return Err(reason);
                }
                let body = sound(&message, room)?;
                Ok(Encoded { message, body })
            });
            match made {
                Ok(encoded) => {
                    self.room -= encoded.body.len().min(self.room);
                    list.push(encoded);
                }
                Err(reason) => {
                    let name = typed::<M>(value)
                        .map(|m| m.name().to_owned())
                        .unwrap_or_default();
                    self.note::<M>(step, &name, reason, NOT_ADDED);
                }
            }
        }
    }
}

enum Outcome<M> {
    Untouched,
    Removed,
    Good(Encoded<M>),
    Bad,
}

/// A bug in patching must not cost anybody a resource.
fn guarded<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        Err("applying it failed unexpectedly, which is a bug in Pilot".to_owned())
    })
}

/// Encodes a resource if Envoy can be expected to take it.
fn sound<M: Resource>(resource: &M, most: usize) -> Result<Vec<u8>, String> {
    let body = encode(resource)?;
    if body.len() > most {
        return Err(format!(
            "it gets {} KiB large; patches may add at most {} KiB to a resource and {} KiB to a list of them",
            body.len() >> 10,
            MAX_GROWTH >> 10,
            MAX_TOTAL_GROWTH >> 10,
        ));
    }
    let dynamic = json::decode(&M::full_name(), &body).map_err(|error| error.to_string())?;
    proto_envoy::rules::check(&dynamic).map_err(|finding| finding.to_string())?;
    check::expressions(&dynamic)?;
    resource.check()?;
    Ok(body)
}

fn encode<M: Resource>(resource: &M) -> Result<Vec<u8>, String> {
    proto_envoy::canonical(&M::full_name(), &resource.encode_to_vec()).map_err(|e| e.to_string())
}

/// A value of a patch as the type it is of.
pub(super) fn typed<M: Message + Name + Default>(value: &DynamicMessage) -> Result<M, String> {
    M::decode(&*value.encode_to_vec()).map_err(|error| error.to_string())
}

/// A message with the value of a patch merged in.
pub(super) fn merged<M: Message + Name + Default>(
    target: &M,
    value: &DynamicMessage,
) -> Result<M, String> {
    let name = M::full_name();
    if value.descriptor().full_name() != name {
        return Err(format!(
            "a {} is not a {name}",
            value.descriptor().full_name()
        ));
    }
    let mut dynamic =
        json::decode(&name, &target.encode_to_vec()).map_err(|error| error.to_string())?;
    proto_envoy::merge(&mut dynamic, value).map_err(|error| error.to_string())?;
    typed(&dynamic)
}
