#!/usr/bin/env bash
# Measures, beside the goals. Needs the release binaries (`make bench` builds them). Loopback only; ends by itself.
#
#   hack/bench.sh [goals] [MESHLOAD FLAGS]   1000 services × 100 proxies, both protocol variants, beside the goals
#   hack/bench.sh large                      1000 services × 1000 proxies
#   hack/bench.sh sweep                      10 to 1000 proxies, 100 to 10,000 services; draws docs/pilot-push-*.svg
#   hack/bench.sh soak [MESHLOAD FLAGS]      ten minutes of 50 changes a second while proxies come and go
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

start_pilot() { # services, services with a file each
  rm -rf "$work/config" && mkdir -p "$work/config"
  "$bin/meshload" gen --services "$1" --single "$2" --dir "$work/config" >/dev/null
  rm -f "$work/addresses.json"
  "$bin/pilot-discovery" discovery --registries= --configDir "$work/config" --meshConfig "" \
    --grpcAddr 127.0.0.1:0 --httpAddr 127.0.0.1:0 --monitoringAddr 127.0.0.1:0 \
    --addressFile "$work/addresses.json" >"$work/pilot.out" 2>"$work/pilot.log" &
  pilot=$!
  address=
  for _ in $(seq 400); do
    address=$(sed -n 's/.*"grpc": *"\([^"]*\)".*/\1/p' "$work/addresses.json" 2>/dev/null | head -n 1) || true
    [ -n "$address" ] && return
    kill -0 "$pilot" 2>/dev/null || break
    sleep 0.05
  done
  cat "$work/pilot.log" >&2
  exit 1
}

stop_pilot() {
  kill "$pilot" && wait "$pilot" || true
  pilot=
}

ads() { # services, proxies, more flags
  local services=$1 proxies=$2
  shift 2
  start_pilot "$services" 1
  "$bin/meshload" ads --target "$address" --proxies "$proxies" --server-pid "$pilot" --config-dir "$work/config" "$@"
  stop_pilot
}

what=${1:-goals}
case "$what" in goals | large | sweep | soak) shift $(($# > 0)) ;; *) what=goals ;; esac
echo "Machine: $(nproc) cores, $(awk '/MemTotal/{printf "%.0f GiB", $2/1048576}' /proc/meminfo), load average $(cut -d' ' -f1-3 /proc/loadavg)"
case "$what" in
  goals)
    ads 1000 100 "$@"
    ads 1000 100 --delta "$@"
    ;;
  large)
    ads 1000 1000 "$@"
    ads 1000 1000 --delta "$@"
    ;;
  sweep)
    out=${CARGO_TARGET_DIR:-target}/bench
    mkdir -p "$out" docs
    for variant in sotw delta; do
      flag=
      [ "$variant" = delta ] && flag=--delta
      : >"$out/sweep-$variant.json"
      for size in "1000 10" "1000 30" "1000 100" "1000 300" "1000 1000" "100 100" "300 100" "3000 100" "10000 100"; do
        read -r services proxies <<<"$size"
        echo "$variant: $services services × $proxies proxies"
        ads "$services" "$proxies" $flag -o json >>"$out/sweep-$variant.json"
      done
      "$bin/meshload" plot "$out/sweep-$variant.json" --out "docs/pilot-push-$variant.svg" \
        --title "Pilot: what a push costs ($variant, $(nproc) cores shared with the load)"
    done
    ;;
  soak)
    start_pilot 1000 100
    "$bin/meshload" soak --target "$address" --server-pid "$pilot" --config-dir "$work/config" --single 100 "$@"
    stop_pilot
    ;;
esac
