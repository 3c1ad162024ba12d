//! proto-mixer
