//! Services.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use pilot_generate::registry::kubernetes as convert;

use super::{Index, Name};
use crate::source::Event;

impl Index {
    /// Whether it is new.
    pub(super) fn set_service(&mut self, name: Name, object: &Service) -> bool {
        let Some(service) = convert::service(object, &self.context) else {
            self.delete_service(&name);
            return false;
        };
        let known = self.services.get(&name);
        if known.is_some_and(|known| **known == service) {
            return false;
        }
        let new = self.services.insert(name, Arc::new(service)).is_none();
        self.services_changed = true;
        self.note(Event::Config);
        new
    }

    pub(super) fn delete_service(&mut self, name: &Name) {
        if self.services.remove(name).is_some() {
            self.services_changed = true;
            self.note(Event::Config);
        }
    }
}
