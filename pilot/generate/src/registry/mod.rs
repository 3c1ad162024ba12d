//! Conversions from what registries hold to the model. Pure: whoever watches the registry calls them once per changed
//! object and files the results in the maps of [`crate::Inputs`].

pub mod ingress;
pub mod kubernetes;
pub(crate) mod service_entry;
