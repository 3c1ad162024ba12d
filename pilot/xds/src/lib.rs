//! pilot-xds
