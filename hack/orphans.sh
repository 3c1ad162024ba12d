#!/usr/bin/env bash
# Every .rs file must belong to a crate: a file that no `mod` names is code that nobody compiles.
# The compiler's own dep-info files say what was read; what git tracks and they do not name is an orphan.
set -euo pipefail
cd "$(dirname "$0")/.."
target=$(cargo metadata --format-version 1 --no-deps --locked | python3 -c 'import json,sys; print(json.load(sys.stdin)["target_directory"])')
compiled=$(mktemp)
trap 'rm -f "$compiled"' EXIT
find "$target/debug/deps" "$target/debug/build" "$target/debug/examples" -name '*.d' -exec cat {} + | tr ' ' '\n' | sed -n 's/:$//; /\.rs$/p' | sed "s|^$PWD/||" | sort -u > "$compiled"
orphans=$(git ls-files '*.rs' ':!*/testdata/*' ':!fuzz/*' ':!*/fuzz/*' | sort | comm -23 - "$compiled")
if [ -n "$orphans" ]; then
  printf 'lint: no crate compiles these files:\n%s\n' "$orphans" >&2
  exit 1
fi
