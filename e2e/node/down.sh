#!/usr/bin/env bash
# down.sh [--keep-logs DIR]: ends the node; no process, mount, cgroup or interface of it stays.
set -euo pipefail
. "$(dirname "$0")/conf.sh"
. "$ROOT/cgroup.sh"

if [ "${1:-}" = --keep-logs ]; then
  mkdir -p "$2"
  cp -r "$NODE_RUN/log/." "$2" 2>/dev/null || true
fi
[ -d "$NODE_RUN" ] || exit 0
# Only the very process that up.sh started. unshare's --kill-child makes its end that of process 1 of the namespace,
# and the kernel then ends everything in there.
if find_node; then
  kill -KILL "$OUTER"
  for _ in $(seq 200); do
    [ -e "/proc/$INNER" ] || break
    sleep 0.05
  done
  [ ! -e "/proc/$INNER" ] || fail "process $INNER, the node's process 1, does not end"
fi
remove_cgroups
[ ! -e "$NODE_RUN/sysctl.before" ] || sysctl -q -p "$NODE_RUN/sysctl.before" || true
rm -rf --one-file-system "$NODE_RUN"
