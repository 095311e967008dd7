#!/usr/bin/env bash
# up.sh: starts the node, and returns when it and its DNS are ready: seven seconds. Needs root, and build.sh before it.
set -euo pipefail
. "$(dirname "$0")/conf.sh"
. "$ROOT/cgroup.sh"
. "$ROOT/config.sh"

[ "$(id -u)" -eq 0 ] || fail 'needs root, for namespaces, mounts and cgroups'
[ -e "$NODE_HOME/images.stamp" ] || fail "nothing is built in $NODE_HOME: run build.sh first"
[ ! -e "$NODE_RUN/pid" ] || fail "a node is up, or was not torn down: $NODE_RUN/pid; run down.sh"

say() { printf '%4d.%d s  %s\n' $((($(now) - began) / 10)) $((($(now) - began) % 10)) "$*"; }
# Tenths of a second.
now() { echo "${EPOCHREALTIME/[.,]/}" | sed 's/.....$//'; }
began=$(now)

umask 022
mkdir -p "$NODE_RUN/log"
chmod 700 "$NODE_RUN"
# containerd keeps images and containers as overlays, and an overlay cannot lie on another.
case $(stat --file-system --format=%T "$NODE_RUN") in
  overlay*|nfs|tmpfs) fail "$NODE_RUN is on a file system that overlays cannot lie on: set NODE_HOME to a directory on" \
    'ext4 or xfs' ;;
esac

# The kubelet sets these for the whole machine; down.sh sets them back.
sysctl vm.overcommit_memory vm.panic_on_oom kernel.panic kernel.panic_on_oops kernel.keys.root_maxkeys \
  kernel.keys.root_maxbytes > "$NODE_RUN/sysctl.before"
for module in overlay br_netfilter; do
  modprobe --quiet "$module" 2>/dev/null || true
done
"$ROOT/pki.sh" "$NODE_RUN/pki"
write_containerd_config
write_network_config
write_kubelet_config
prepare_cgroups
say 'configuration and certificates'

# Everything below one process, which is number 1 of its own namespaces: its end is the end of all.
setsid unshare --net --mount --pid --ipc --uts --fork --kill-child --mount-proc --propagation private \
  bash "$ROOT/init.sh" < /dev/null > "$NODE_RUN/log/init.log" 2>&1 &
outer=$!
inner=
for _ in $(seq 100); do
  inner=$(tr -d ' ' < "/proc/$outer/task/$outer/children" 2>/dev/null) || true
  [ -z "$inner" ] || break
  sleep 0.05
done
[ -n "$inner" ] || fail "the node did not start; see $NODE_RUN/log/init.log"
echo "$outer $inner $(started_at "$outer")" > "$NODE_RUN/pid"

cat > "$NODE_RUN/in" <<END
#!/bin/sh
# in COMMAND...: runs it in the node's network namespace, with KUBECONFIG set and the node's own programs first in PATH:
#   in kubectl get pods -A      in helm install x ./chart      in curl http://SERVICE_IP/
exec nsenter --net=/proc/$inner/ns/net -- env KUBECONFIG="$NODE_RUN/pki/admin.kubeconfig" PATH="$BIN:\$PATH" "\$@"
END
chmod +x "$NODE_RUN/in"

# until_true SECONDS WHAT COMMAND...
until_true() {
  local seconds=$1 what=$2 _
  shift 2
  for _ in $(seq $((seconds * 10))); do
    if "$@" >/dev/null 2>&1; then
      say "$what"
      return
    fi
    kill -0 $outer 2>/dev/null || fail "the node has ended; see $NODE_RUN/log"
    sleep 0.1
  done
  fail "waited $seconds seconds for: $what; see $NODE_RUN/log"
}

kubectl="$NODE_RUN/in kubectl"
until_true 120 'API server ready' test -e "$NODE_RUN/apiserver.ready"
for manifest in "$ROOT"/manifests/*.yaml; do
  $kubectl apply -f "$manifest" >/dev/null
done
until_true 300 'images imported, kubelet started' test -e "$NODE_RUN/kubelet.started"
until_true 60 'node registered' $kubectl get node $NODE
$kubectl wait --for=condition=Ready node/$NODE --timeout=60s >/dev/null
say 'node ready'
$kubectl -n kube-system rollout status deployment/coredns --timeout=120s >/dev/null
say 'DNS ready'
