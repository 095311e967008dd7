#!/usr/bin/env bash
# build.sh [packages]: builds the node's binaries and images into NODE_HOME (conf.sh). Six minutes on two cores from
# nothing, no time at all when nothing has changed. With "packages", installs missing Debian packages first, as root.
set -euo pipefail
. "$(dirname "$0")/conf.sh"
. "$ROOT/go.sh"

install_packages() {
  # The node from containerd on; what images are made of from git on; Go and busybox, unless they are there.
  local packages=(containerd runc containernetworking-plugins iptables nftables iproute2 kmod procps util-linux
    openssl git ca-certificates gcc libc6-dev binutils python3) missing=() package
  command -v go >/dev/null || packages+=(golang-go)
  command -v busybox >/dev/null || packages+=(busybox)
  for package in "${packages[@]}"; do
    [ "$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null)" = installed ] ||
      missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  [ "$(id -u)" -eq 0 ] || fail "as root, install: ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update --quiet --quiet
  # A service that a package brings would start at once where there is an init; the node starts a containerd of its own.
  apt-get install --quiet --quiet --yes --no-install-recommends "${missing[@]}"
}

# Digest of files and directories: what is built from them is built anew when it changes.
digest() {
  (cd "$ROOT" && find "$@" -type f -print0 | sort --zero-terminated | xargs --null sha256sum) | sha256sum | cut -c1-16
}

# unless_built NAME SOURCES... -- FUNCTION: calls the function unless it has succeeded with these very sources.
unless_built() {
  local name=$1 sources=() now
  shift
  while [ "$1" != -- ]; do
    sources+=("$1")
    shift
  done
  now=$(digest "${sources[@]}")
  [ "$(cat "$NODE_HOME/$name.stamp" 2>/dev/null)" != "$now" ] || return 0
  echo "building $name"
  "$2"
  echo "$now" > "$NODE_HOME/$name.stamp"
}

# What helm and its unit tests take for the cluster's version is a variable of theirs.
build_tools() {
  cd "$ROOT/tools"
  local helm=helm.sh/helm/v3 version minor flags
  version=$("$GO" list -m -f '{{.Version}}' $helm)
  minor=$(sed -n 's#^\tk8s.io/client-go v0\.\([0-9]*\)\..*#\1#p' go.mod)
  flags="-s -w -X $helm/internal/version.version=$version"
  for package in pkg/lint/rules pkg/chartutil; do
    flags="$flags -X $helm/$package.k8sVersionMajor=1 -X $helm/$package.k8sVersionMinor=$minor"
  done
  "$GO" build -ldflags "$flags" -o "$BIN/helm" $helm/cmd/helm
  "$GO" build -ldflags "$flags" -o "$BIN/untt" github.com/helm-unittest/helm-unittest/cmd/helm-unittest
  "$GO" build -ldflags '-s -w' -o "$BIN/coredns" ./coredns
}

build_hyper() {
  cd "$ROOT/hyper"
  local version minor flags='-s -w' package name
  version=$("$GO" list -m -f '{{.Version}}' k8s.io/kubernetes)
  minor=$(cut -d. -f2 <<<"$version")
  for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
    flags="$flags -X $package.gitVersion=$version -X $package.gitMajor=1 -X $package.gitMinor=$minor"
    flags="$flags -X $package.gitTreeState=clean -X $package.buildDate=1970-01-01T00:00:00Z"
  done
  "$GO" build -ldflags "$flags" -o "$BIN/hyper" .
  for name in etcd kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubelet kubectl \
    local-provisioner netpol; do
    ln -sf hyper "$BIN/$name"
  done
}

build_images() {
  gcc -static -Os -s -o "$NODE_HOME/pause" "$ROOT/pause.c"
  python3 "$ROOT/image.py" "$IMAGES/pause.tar" tarn.local/pause:e2e --entrypoint /pause --add "$NODE_HOME/pause=/pause"
  python3 "$ROOT/image.py" "$IMAGES/coredns.tar" tarn.local/coredns:e2e --entrypoint /coredns \
    --add "$BIN/coredns=/coredns"
}

[ $# -eq 0 ] || [ "$*" = packages ] || fail 'the only argument is "packages"'
[ $# -eq 0 ] || install_packages
mkdir -p "$BIN" "$IMAGES"
find_go "$(sed -n 's/^go //p' "$ROOT/hyper/go.mod")"
# The same flags everywhere: other flags would compile all of Kubernetes once more.
export CGO_ENABLED=0 GOFLAGS='-buildvcs=false -trimpath'
unless_built tools tools build.sh -- build_tools
unless_built hyper hyper build.sh -- build_hyper
unless_built images pause.c image.py tools build.sh -- build_images
echo "built in $NODE_HOME"
