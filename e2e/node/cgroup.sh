# shellcheck shell=bash
# Sourced by up.sh and down.sh: the cgroups that the node's pods live in, for version 1 (or mixed) and version 2. Both
# functions run outside of the node's namespaces, for only there every process of the machine has a number.
CGROUPS=/sys/fs/cgroup

is_version_2() {
  [ "$(stat --file-system --format=%T $CGROUPS)" = cgroup2fs ]
}

# The kubelet takes a root whose controllers are not all there for no root at all. Some may be refused, such as those
# of devices that are missing.
delegate_all() {
  local controller
  for controller in $(cat $CGROUPS/cgroup.controllers); do
    echo "+$controller" > $CGROUPS/cgroup.subtree_control || true
  done 2>/dev/null
}

lacks_controllers() {
  local controller
  for controller in cpu cpuset memory pids; do
    grep --quiet --word-regexp "$controller" $CGROUPS/cgroup.subtree_control || return 0
  done
  return 1
}

prepare_version_2() {
  cat $CGROUPS/cgroup.subtree_control > "$NODE_RUN/subtree_control.before"
  delegate_all
  # Within a container the root is an ordinary cgroup, which cannot have both processes and controllers for its
  # children: its processes move to a child of their own, and back in remove_cgroups.
  if lacks_controllers && [ -e $CGROUPS/cgroup.type ]; then
    mkdir -p "$CGROUPS/$CGROUP.outside"
    move_processes $CGROUPS "$CGROUPS/$CGROUP.outside"
    delegate_all
  fi
  ! lacks_controllers || fail "$CGROUPS/cgroup.subtree_control has only: $(cat $CGROUPS/cgroup.subtree_control);" \
    'the node needs cpu, cpuset, memory and pids there'
  mkdir -p "$CGROUPS/$CGROUP"
}

# Kernel threads cannot be moved, and processes end while the list is read.
move_processes() {
  local process
  while read -r process; do
    echo "$process" > "$2/cgroup.procs" || true
  done < "$1/cgroup.procs" 2>/dev/null
}

# A hierarchy for each controller. A new cpuset is empty, and nothing can run in it.
prepare_version_1() {
  local hierarchy
  for hierarchy in $CGROUPS/*/; do
    mkdir -p "$hierarchy$CGROUP"
    if [ -e "$hierarchy$CGROUP/cpuset.cpus" ]; then
      cat "${hierarchy}cpuset.cpus" > "$hierarchy$CGROUP/cpuset.cpus"
      cat "${hierarchy}cpuset.mems" > "$hierarchy$CGROUP/cpuset.mems"
    fi
  done
}

prepare_cgroups() {
  if is_version_2; then prepare_version_2; else prepare_version_1; fi
}

# Cgroups outlive their processes, and one can be removed only when its last process is really gone.
remove_tree() {
  local _
  [ -d "$1" ] || return 0
  for _ in $(seq 100); do
    find "$1" -depth -type d -exec rmdir {} + 2>/dev/null || true
    [ -d "$1" ] || return 0
    sleep 0.05
  done
  echo "left behind: $1" >&2
}

remove_cgroups() {
  local tree controller
  if ! is_version_2; then
    for tree in $CGROUPS/*/"$CGROUP"; do remove_tree "$tree"; done
    return
  fi
  remove_tree "$CGROUPS/$CGROUP"
  if [ -e "$NODE_RUN/subtree_control.before" ]; then
    for controller in $(cat $CGROUPS/cgroup.subtree_control); do
      grep --quiet --word-regexp "$controller" "$NODE_RUN/subtree_control.before" ||
        echo "-$controller" > $CGROUPS/cgroup.subtree_control || true
    done 2>/dev/null
  fi
  if [ -d "$CGROUPS/$CGROUP.outside" ]; then
    move_processes "$CGROUPS/$CGROUP.outside" $CGROUPS
    remove_tree "$CGROUPS/$CGROUP.outside"
  fi
}
