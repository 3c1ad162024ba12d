//! Resources for streams of the v2 API.
//!
//! Everything behind the engine is v3. What a v2 client is sent is translated on its way out and remembered, so that a
//! list that is sent again, or to another old client, costs lookups. The memory is bounded: when it is full it starts
//! anew.

use std::borrow::Cow;

use ahash::HashMap;
use bytes::Bytes;
use parking_lot::Mutex;

use crate::resource::{ApiVersion, Resource, ResourceType, Version};

/// Translations that are remembered.
const REMEMBERED: usize = 8192;

/// See the [module](self).
#[derive(Default)]
pub(crate) struct Translator(Mutex<HashMap<(ResourceType, Version), Bytes>>);

impl Translator {
    /// These resources in the form of a version of the API. Their names and versions stay what they are.
    pub(crate) fn translate<'a>(
        &self,
        version: ApiVersion,
        ty: ResourceType,
        resources: &'a [Resource],
    ) -> Cow<'a, [Resource]> {
        match version {
            ApiVersion::V3 => Cow::Borrowed(resources),
            ApiVersion::V2 => resources
                .iter()
                .map(|resource| Resource {
                    body: self.downgrade(ty, resource),
                    ..resource.clone()
                })
                .collect(),
        }
    }

    fn downgrade(&self, ty: ResourceType, resource: &Resource) -> Bytes {
        let key = (ty, resource.version);
        if let Some(body) = self.0.lock().get(&key) {
            return body.clone();
        }
        let body = match proto_envoy::downgrade(ty, &resource.body) {
            Ok(body) => Bytes::from(body),
            Err(error) => {
                // Not what it is said to be; v3 clients are sent the same bytes.
                tracing::warn!(ty = ty.short(), name = &*resource.name, %error, "not translated to v2");
                return resource.body.clone();
            }
        };
        let mut remembered = self.0.lock();
        if remembered.len() >= REMEMBERED {
            remembered.clear();
        }
        remembered.insert(key, body.clone());
        body
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_bounded_and_names_and_versions_stay() {
        let translator = Translator::default();
        for i in 0..REMEMBERED + 10 {
            // Field 1 of a cluster load assignment is its name.
            let name = format!("{i:06}");
            let body = [&[0x0a, 6], name.as_bytes()].concat();
            let resource = Resource::new(name.as_str(), body.clone());
            let version = resource.version;
            let translated = translator.translate(
                ApiVersion::V2,
                ResourceType::Endpoint,
                std::slice::from_ref(&resource),
            );
            assert_eq!(
                (&*translated[0].name, translated[0].version),
                (&*name, version)
            );
            assert_eq!(translated[0].body, body);
        }
        assert!(translator.0.lock().len() <= REMEMBERED);
    }
}
