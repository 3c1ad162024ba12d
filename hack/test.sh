#!/usr/bin/env bash
# Runs every test: one build of the workspace, then the runner. Tests that need the real Envoy, kubectl or root look for
# them and say so when they are absent; `make setup` has put the first two into .tools/.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:/usr/sbin:/sbin"
cargo build --workspace --bins --locked
if cargo nextest --version >/dev/null 2>&1; then
  cargo nextest run --workspace --locked --no-fail-fast
  cargo test --workspace --doc --locked
else
  cargo test --workspace --locked --no-fail-fast
fi
