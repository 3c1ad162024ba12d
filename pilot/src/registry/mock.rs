//! No services at all: with `--configDir`, everything comes from ServiceEntries.

use futures::{FutureExt as _, future::BoxFuture};
use mesh_service::Drain;
use pilot_generate::model;

use super::{Outlet, Platform, Registry};
use crate::source::Event;

pub(super) const PLATFORM: Platform = Platform {
    name: "Mock",
    registry: model::Registry::Mock,
    needs_kubernetes: false,
    make: |_| Ok(Box::new(Mock)),
};

struct Mock;

impl Registry for Mock {
    fn run(self: Box<Self>, mut outlet: Outlet, drain: Drain) -> BoxFuture<'static, ()> {
        async move {
            outlet.publish(outlet.empty(), Event::Config);
            drain.begun().await;
        }
        .boxed()
    }
}
