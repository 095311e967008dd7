#!/usr/bin/env bash
# signal.sh SIGNAL COMPONENT: sends a component of the node a signal, such as STOP and CONT to kube-apiserver.
set -euo pipefail
. "$(dirname "$0")/conf.sh"
[ $# -eq 2 ] || fail 'usage: signal.sh SIGNAL COMPONENT'
find_node || fail 'no node is up: run up.sh first'
process=$(sed -n "s/^\([0-9]*\) $2\$/\1/p" "$NODE_RUN/components" | tail -n 1)
[ -n "$process" ] || fail "no component is called $2; there are: $(cut -d' ' -f2 "$NODE_RUN/components" | xargs)"
# By its number in the node's own namespace.
nsenter --pid="/proc/$INNER/ns/pid" -- /bin/bash -c "kill -$1 $process"
