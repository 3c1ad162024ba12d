//! Responses on the wire, assembled from shared bytes.
//!
//! A `DiscoveryResponse` is a few small fields that differ per client (nonce, version) and the resources, which mostly do
//! not. Protobuf lets fields come in any order, so a response here is a private head (gRPC frame header, version, type URL,
//! nonce) and runs of encoded `resources` fields. A long list is cut into runs at places that depend on the names alone,
//! and each run is remembered weakly by what it holds: while one client's run is still being written, another client
//! that needs the same one borrows it. A hundred proxies that are sent the same thousand clusters so cost one copy of
//! them, and a proxy with a few clusters of its own shares all runs but those.
//!
//! Cost: a run is one pass of copying over its resources; a borrowed run is one hash over their names and versions.

use std::sync::{Arc, Weak};

use ahash::{HashMap, RandomState};
use bytes::{BufMut as _, Bytes, BytesMut};
use parking_lot::Mutex;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};

use crate::resource::{ApiVersion, Resource, ResourceType};

/// Which of the two protocol variants a stream speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Variant {
    /// State of the world: `StreamAggregatedResources`.
    Sotw,
    /// Incremental: `DeltaAggregatedResources`.
    Delta,
}

/// In what form the resources of a type travel on a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Form {
    pub(crate) variant: Variant,
    pub(crate) version: ApiVersion,
    pub(crate) ty: ResourceType,
}

impl Form {
    const fn type_url(self) -> &'static str {
        self.ty.url(self.version)
    }
}

/// Runs smaller than this are cheaper to copy than to look up.
const SHARE_FROM: usize = 8 * 1024;

/// A run ends after a name whose hash has these bits clear: every 64th name or so.
const CUT: u64 = 63;

/// The per-client part of a response.
pub(crate) struct Head<'a> {
    pub(crate) version: &'a str,
    pub(crate) nonce: &'a str,
    /// `control_plane.identifier`: which replica answered.
    pub(crate) identifier: &'a str,
    /// Delta only.
    pub(crate) removed: &'a [Arc<str>],
}

/// One gRPC message, ready to be written.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) chunks: Vec<Bytes>,
}

impl Message {
    pub(crate) fn len(&self) -> usize {
        self.chunks.iter().map(Bytes::len).sum()
    }
}

/// Assembles responses; shared by all streams of a server.
#[derive(Default)]
pub(crate) struct Assembler {
    runs: Mutex<HashMap<u64, Weak<SharedRun>>>,
    hasher: RandomState,
}

struct SharedRun(Vec<u8>);

/// Keeps the run alive while any client's slice of it is.
struct RunOwner(Arc<SharedRun>);

impl AsRef<[u8]> for RunOwner {
    fn as_ref(&self) -> &[u8] {
        &self.0.0
    }
}

impl Assembler {
    /// A response of this form with these resources, whose bodies are in this form already.
    pub(crate) fn message(&self, form: Form, head: &Head<'_>, resources: &[Resource]) -> Message {
        let mut buffer = BytesMut::with_capacity(256);
        buffer.put_bytes(0, 5);
        put_str(&mut buffer, 1, head.version);
        put_str(&mut buffer, 4, form.type_url());
        put_str(&mut buffer, 5, head.nonce);
        if form.variant == Variant::Delta {
            for name in head.removed {
                put_str(&mut buffer, 6, name);
            }
        }
        if !head.identifier.is_empty() {
            let control_plane = match form.variant {
                Variant::Sotw => 6,
                Variant::Delta => 7,
            };
            put_len(&mut buffer, control_plane, str_len(1, head.identifier));
            put_str(&mut buffer, 1, head.identifier);
        }
        let mut chunks = Vec::new();
        for run in runs(resources) {
            let size: usize = run.iter().map(|r| field_len(form, r)).sum();
            if size < SHARE_FROM {
                buffer.reserve(size);
                encode_run(&mut buffer, form, run);
            } else {
                chunks.push(buffer.split().freeze());
                chunks.push(self.shared(form, run, size));
            }
        }
        chunks.push(buffer.freeze());
        chunks.retain(|chunk| !chunk.is_empty());
        // A message past 4 GiB cannot be framed; resources that large do not exist, and the client would refuse it.
        let length: usize = chunks.iter().map(Bytes::len).sum::<usize>() - 5;
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        if let Some(head) = chunks.first_mut() {
            // The head is ours alone, so this is no copy.
            let mut first = BytesMut::from(std::mem::take(head));
            first[1..5].copy_from_slice(&length.to_be_bytes());
            *head = first.freeze();
        }
        Message { chunks }
    }

    fn shared(&self, form: Form, resources: &[Resource], size: usize) -> Bytes {
        let key = self.hasher.hash_one((form, size, HashedSlice(resources)));
        if let Some(run) = self.runs.lock().get(&key).and_then(Weak::upgrade) {
            return Bytes::from_owner(RunOwner(run));
        }
        let mut buffer = Vec::with_capacity(size);
        encode_run(&mut buffer, form, resources);
        debug_assert_eq!(
            buffer.len(),
            size,
            "the length was computed for another encoding"
        );
        let run = Arc::new(SharedRun(buffer));
        let mut runs = self.runs.lock();
        if runs.len() >= runs.capacity() {
            // Before the table grows, drop what nobody writes any more.
            runs.retain(|_, run| run.strong_count() > 0);
        }
        runs.insert(key, Arc::downgrade(&run));
        drop(runs);
        Bytes::from_owner(RunOwner(run))
    }
}

/// Cuts a list into runs. Where it is cut depends on single names only, so two lists that differ in a few resources have
/// most runs in common.
fn runs(resources: &[Resource]) -> impl Iterator<Item = &[Resource]> {
    resources.split_inclusive(|resource| {
        let mut hasher = std::hash::DefaultHasher::new();
        std::hash::Hasher::write(&mut hasher, resource.name.as_bytes());
        std::hash::Hasher::finish(&hasher) & CUT == 0
    })
}

struct HashedSlice<'a>(&'a [Resource]);

impl std::hash::Hash for HashedSlice<'_> {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        for resource in self.0 {
            state.write_u64(resource.version.0);
            state.write(resource.name.as_bytes());
        }
    }
}

fn encode_run(buffer: &mut impl bytes::BufMut, form: Form, resources: &[Resource]) {
    for resource in resources {
        match form.variant {
            Variant::Sotw => put_any(buffer, form, &resource.body),
            Variant::Delta => {
                put_len(buffer, 2, delta_len(form, resource));
                put_str(buffer, 1, &resource.version.to_string());
                put_any(buffer, form, &resource.body);
                put_str(buffer, 3, &resource.name);
            }
        }
    }
}

/// The length of one `resources` field, key and length included.
fn field_len(form: Form, resource: &Resource) -> usize {
    match form.variant {
        Variant::Sotw => any_field_len(form, &resource.body),
        Variant::Delta => len_field_len(2, delta_len(form, resource)),
    }
}

fn delta_len(form: Form, resource: &Resource) -> usize {
    // The version is always 16 hexadecimal digits.
    len_field_len(1, 16) + any_field_len(form, &resource.body) + str_len(3, &resource.name)
}

fn any_field_len(form: Form, body: &[u8]) -> usize {
    len_field_len(2, any_len(form, body))
}

fn any_len(form: Form, body: &[u8]) -> usize {
    str_len(1, form.type_url()) + len_field_len(2, body.len())
}

/// Field 2 is the `Any` both of `DiscoveryResponse.resources` and of `Resource.resource`.
fn put_any(buffer: &mut impl bytes::BufMut, form: Form, body: &[u8]) {
    put_len(buffer, 2, any_len(form, body));
    put_str(buffer, 1, form.type_url());
    put_len(buffer, 2, body.len());
    buffer.put_slice(body);
}

fn len_field_len(tag: u32, length: usize) -> usize {
    key_len(tag) + encoded_len_varint(length as u64) + length
}

fn str_len(tag: u32, text: &str) -> usize {
    len_field_len(tag, text.len())
}

fn put_len(buffer: &mut impl bytes::BufMut, tag: u32, length: usize) {
    encode_key(tag, WireType::LengthDelimited, buffer);
    encode_varint(length as u64, buffer);
}

fn put_str(buffer: &mut impl bytes::BufMut, tag: u32, text: &str) {
    put_len(buffer, tag, text.len());
    buffer.put_slice(text.as_bytes());
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use envoy_types::pb::envoy::service::discovery::v3::{
        DeltaDiscoveryResponse, DiscoveryResponse,
    };

    use super::*;

    fn decode<M: prost::Message + Default>(message: &Message) -> M {
        let whole = message.chunks.concat();
        assert_eq!(whole[0], 0, "not compressed");
        let length = u32::from_be_bytes(whole[1..5].try_into().unwrap()) as usize;
        assert_eq!(length, whole.len() - 5);
        M::decode(&whole[5..]).unwrap()
    }

    fn form(variant: Variant, ty: ResourceType) -> Form {
        Form {
            variant,
            version: ApiVersion::V3,
            ty,
        }
    }

    fn head<'a>(removed: &'a [Arc<str>]) -> Head<'a> {
        Head {
            version: "v/1",
            nonce: "n",
            identifier: "pilot-0",
            removed,
        }
    }

    #[test]
    fn envoy_reads_what_we_assemble() {
        let resources = [
            Resource::new("a", vec![1u8; 300]),
            Resource::new("b", Vec::<u8>::new()),
        ];
        let assembler = Assembler::default();
        let sotw: DiscoveryResponse = decode(&assembler.message(
            form(Variant::Sotw, ResourceType::Cluster),
            &head(&[]),
            &resources,
        ));
        assert_eq!(
            (sotw.version_info.as_str(), sotw.nonce.as_str()),
            ("v/1", "n")
        );
        assert_eq!(sotw.type_url, ResourceType::Cluster.type_url());
        assert_eq!(sotw.control_plane.unwrap().identifier, "pilot-0");
        assert_eq!(sotw.resources.len(), 2);
        assert_eq!(sotw.resources[0].value, [1u8; 300]);
        assert_eq!(sotw.resources[1].type_url, ResourceType::Cluster.type_url());

        let removed = ["gone".into()];
        let delta: DeltaDiscoveryResponse = decode(&assembler.message(
            form(Variant::Delta, ResourceType::Listener),
            &head(&removed),
            &resources,
        ));
        assert_eq!(delta.removed_resources, ["gone"]);
        assert_eq!(delta.resources[0].name, "a");
        assert_eq!(delta.resources[0].version, resources[0].version.to_string());
        assert_eq!(
            delta.resources[0].resource.as_ref().unwrap().value,
            [1u8; 300]
        );
        assert_eq!(delta.control_plane.unwrap().identifier, "pilot-0");
    }

    fn many(changed: Option<usize>) -> Vec<Resource> {
        let body = |i| {
            if Some(i) == changed {
                vec![1u8; 500]
            } else {
                vec![0u8; 500]
            }
        };
        (0..1000)
            .map(|i| Resource::new(format!("cluster-{i:04}"), body(i)))
            .collect()
    }

    #[test]
    fn long_lists_arrive_whole() {
        let message = Assembler::default().message(
            form(Variant::Delta, ResourceType::Cluster),
            &head(&[]),
            &many(None),
        );
        assert!(message.chunks.len() > 5, "{}", message.chunks.len());
        let names: Vec<String> = decode::<DeltaDiscoveryResponse>(&message)
            .resources
            .into_iter()
            .map(|r| r.name)
            .collect();
        assert_eq!(
            names,
            many(None)
                .iter()
                .map(|r| r.name.to_string())
                .collect::<Vec<_>>()
        );
    }

    #[test]
    fn equal_runs_are_one_allocation_while_in_use() {
        let assembler = Assembler::default();
        let message = |resources: &[Resource]| {
            assembler.message(
                form(Variant::Sotw, ResourceType::Cluster),
                &head(&[]),
                resources,
            )
        };
        // Bytes of `a` that are not also bytes of `b`.
        let private = |a: &Message, b: &Message| -> usize {
            let shared = |chunk: &&Bytes| {
                b.chunks
                    .iter()
                    .any(|other| other.as_ptr() == chunk.as_ptr())
            };
            a.chunks
                .iter()
                .filter(|chunk| !shared(chunk))
                .map(Bytes::len)
                .sum()
        };
        let (first, second, other) = (
            message(&many(None)),
            message(&many(None)),
            message(&many(Some(500))),
        );
        assert!(first.len() > 500_000);
        assert!(
            private(&first, &second) < first.len() / 5,
            "only heads and short runs are private"
        );
        assert!(
            private(&other, &first) < first.len() / 2,
            "one run more differs"
        );
        drop((first, second, other));
        for i in 0..1000 {
            let _ = message(&many(Some(i)));
        }
        assert!(
            assembler.runs.lock().len() < 200,
            "runs that nobody writes are forgotten"
        );
    }
}
