#!/usr/bin/env bash
# Measures, beside the goals. Needs the release binaries (`make bench` builds them). Loopback only; ends by itself.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${CARGO_TARGET_DIR:-target}/release
work=$(mktemp -d)
pilot=
finish() {
  [ -z "$pilot" ] || kill "$pilot" 2>/dev/null || true
  rm -rf "$work"
}
trap finish EXIT

echo "Machine: $(nproc) cores, $(awk '/MemTotal/{printf "%.0f GiB", $2/1048576}' /proc/meminfo), load average $(cut -d' ' -f1-3 /proc/loadavg)"
for mode in "" --delta; do
  rm -rf "$work/config" && mkdir -p "$work/config"
  "$bin/meshload" gen --services 1000 --dir "$work/config"
  "$bin/pilot-discovery" discovery --registries= --configDir "$work/config" --meshConfig "" \
    --grpcAddr 127.0.0.1:0 --httpAddr 127.0.0.1:0 --monitoringAddr 127.0.0.1:0 >"$work/pilot.out" 2>"$work/pilot.log" &
  pilot=$!
  for _ in $(seq 200); do
    address=$(sed -n 's/.*grpc[^0-9]*\(127\.0\.0\.1:[0-9]*\).*/\1/p' "$work/pilot.log" | head -n 1)
    [ -n "$address" ] && break
    kill -0 "$pilot" || { cat "$work/pilot.log"; exit 1; }
    sleep 0.05
  done
  "$bin/meshload" ads --target "$address" --proxies 100 --server-pid "$pilot" --config-dir "$work/config" $mode "$@"
  kill "$pilot" && wait "$pilot" || true
  pilot=
done
