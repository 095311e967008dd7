#!/usr/bin/env bash
# load.sh ARCHIVE...: imports images into the running node. A pod gets the new one when it is made anew; its image must
# have a tag other than latest, or the policy Never, for there is nowhere to pull from.
set -euo pipefail
. "$(dirname "$0")/conf.sh"
[ $# -gt 0 ] || fail 'usage: load.sh ARCHIVE...'
find_node || fail 'no node is up: run up.sh first'
for archive in "$@"; do
  # Through standard input: /run and /var are other file systems in there.
  nsenter --mount="/proc/$INNER/ns/mnt" -- \
    ctr --address $CONTAINERD_SOCKET --namespace k8s.io images import - < "$archive"
done
