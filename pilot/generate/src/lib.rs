//! pilot-generate
