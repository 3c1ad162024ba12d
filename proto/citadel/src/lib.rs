//! proto-citadel
