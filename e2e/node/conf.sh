# shellcheck shell=bash disable=SC2034
# Sourced by the other scripts: where things are, and what the node is called.

# These scripts.
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# What is built, kept from one run to the next: binaries, images, stamps.
NODE_HOME=${NODE_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}/tarn/node}
# One running node; gone after down.sh.
NODE_RUN=${NODE_RUN:-$NODE_HOME/run}
BIN=$NODE_HOME/bin
# Every archive in here is imported when the node starts.
IMAGES=$NODE_HOME/images

NODE=tarn-e2e
# These addresses exist in the node's own network namespace and nowhere else. From outside of it, a packet to one of
# them would leave the machine: reach them through $NODE_RUN/in only.
NODE_IP=172.30.0.2
POD_CIDR=10.244.0.0/16
NODE_POD_CIDR=10.244.0.0/24
SERVICE_CIDR=10.96.0.0/16
API_SERVICE_IP=10.96.0.1
DNS_IP=10.96.0.10
# The cgroup below which all of the node's pods live.
CGROUP=tarn-e2e
CONTAINERD_SOCKET=/run/containerd/containerd.sock

fail() {
  printf '%s: %s\n' "$0" "$*" >&2
  exit 1
}

# The 22nd field of stat, the start time, tells a process from a later one of the same number. The command's name,
# the second field, may hold anything, so count from the parenthesis after it.
started_at() {
  [ -r "/proc/$1/stat" ] || return 0
  sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20
}

# Sets OUTER (the process that holds the namespaces, by its number out here) and INNER (process 1 of the node, by its
# number out here) where a node runs; fails where none does.
find_node() {
  [ -e "$NODE_RUN/pid" ] || return 1
  local start
  read -r OUTER INNER start < "$NODE_RUN/pid"
  [ -n "$OUTER" ] && [ "$(started_at "$OUTER")" = "$start" ]
}
