//! proto-mcp
