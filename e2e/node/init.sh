#!/usr/bin/env bash
# init.sh: process 1 of the node's own network, mount, PID, IPC and UTS namespaces. Only up.sh starts it.
set -euo pipefail
. "$(dirname "$0")/conf.sh"
[ $$ = 1 ] || fail 'not process 1; use up.sh'
log=$NODE_RUN/log
pki=$NODE_RUN/pki

# Private views of what the components write outside of NODE_RUN; they go with the mount namespace.
mount_private_views() {
  # A new sysfs shows this network namespace's devices. The cgroups move over to it; and this must be done before / is
  # shared, or the unmounting would reach them as well.
  mkdir -p "$NODE_RUN/cgroups"
  mount --rbind /sys/fs/cgroup "$NODE_RUN/cgroups"
  mount -t sysfs sysfs /sys
  mount --rbind "$NODE_RUN/cgroups" /sys/fs/cgroup
  umount --recursive "$NODE_RUN/cgroups"
  mount -t tmpfs -o mode=755 tmpfs /run
  mkdir -p /run/lock /run/netns
  mkdir -p "$NODE_RUN/var.upper" "$NODE_RUN/var.work"
  mount -t overlay -o "lowerdir=/var,upperdir=$NODE_RUN/var.upper,workdir=$NODE_RUN/var.work" overlay /var
  # As the kubelet wants it; our only peers are ourselves.
  mount --make-rshared /
}

# Loopback, and a pair of devices with both ends in here to carry the node's address. Nothing leads out.
set_up_network() {
  ip link set lo up
  ip link add eth0 type veth peer name eth0-peer
  ip link set eth0 up
  ip link set eth0-peer up
  ip addr add $NODE_IP/24 dev eth0
  # A packet of the node's own to a Service needs a route before its destination is rewritten.
  ip route add $SERVICE_CIDR dev eth0 src $NODE_IP
  # Whoever tries to reach the outside learns at once that there is none.
  ip route add unreachable default
  # The second is missing where the bridge's filter is; IPv6 where the kernel has none.
  for setting in net.ipv4.ip_forward=1 net.bridge.bridge-nf-call-iptables=1 net.ipv6.conf.all.disable_ipv6=1; do
    sysctl -qw $setting || true
  done
}

# start NAME COMMAND...: in the background; signal.sh finds it by its name.
start() {
  local name=$1
  shift
  "$@" > "$log/$name.log" 2>&1 < /dev/null &
  echo "$! $name" >> "$NODE_RUN/components"
}

start_etcd() {
  start etcd "$BIN/etcd" --data-dir "$NODE_RUN/etcd" --unsafe-no-fsync --log-level warn \
    --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
    --listen-peer-urls http://127.0.0.1:2380 --initial-advertise-peer-urls http://127.0.0.1:2380 \
    --initial-cluster default=http://127.0.0.1:2380
}

start_api_server() {
  start kube-apiserver "$BIN/kube-apiserver" --etcd-servers=http://127.0.0.1:2379 \
    --bind-address=0.0.0.0 --secure-port=6443 --advertise-address=$NODE_IP \
    --service-cluster-ip-range=$SERVICE_CIDR --allow-privileged=true --anonymous-auth=false \
    --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --enable-aggregator-routing=true \
    --client-ca-file="$pki/ca.crt" \
    --tls-cert-file="$pki/apiserver.crt" --tls-private-key-file="$pki/apiserver.key" \
    --kubelet-client-certificate="$pki/apiserver-kubelet-client.crt" \
    --kubelet-client-key="$pki/apiserver-kubelet-client.key" \
    --kubelet-certificate-authority="$pki/ca.crt" --kubelet-preferred-address-types=InternalIP \
    --service-account-issuer=https://kubernetes.default.svc.cluster.local \
    --service-account-key-file="$pki/sa.pub" --service-account-signing-key-file="$pki/sa.key" \
    --requestheader-client-ca-file="$pki/front-proxy-ca.crt" \
    --requestheader-allowed-names=front-proxy-client --requestheader-username-headers=X-Remote-User \
    --requestheader-group-headers=X-Remote-Group --requestheader-extra-headers-prefix=X-Remote-Extra- \
    --proxy-client-cert-file="$pki/front-proxy-client.crt" --proxy-client-key-file="$pki/front-proxy-client.key"
}

import_images() {
  local image
  until ctr --address $CONTAINERD_SOCKET version >/dev/null 2>&1; do sleep 0.05; done
  for image in "$IMAGES"/*.tar; do
    ctr --address $CONTAINERD_SOCKET --namespace k8s.io images import "$image"
  done
  touch "$NODE_RUN/images.imported"
}

# kubeconfigs FILE: the flags of components that ask the API server who calls them.
kubeconfigs() {
  echo "--kubeconfig=$1 --authentication-kubeconfig=$1 --authorization-kubeconfig=$1 --bind-address=127.0.0.1"
}

# The default of 20 requests a second makes the controllers start five seconds late. A single node that is taken for
# lost has nowhere to move its pods to, and the tests stop the API server for longer than a node may be silent.
start_controller_manager() {
  # shellcheck disable=SC2046 # several flags
  start kube-controller-manager "$BIN/kube-controller-manager" $(kubeconfigs "$pki/controller-manager.kubeconfig") \
    --leader-elect=false --kube-api-qps=1000 --kube-api-burst=1000 --node-monitor-grace-period=10m \
    --use-service-account-credentials=true --service-account-private-key-file="$pki/sa.key" \
    --root-ca-file="$pki/ca.crt" --client-ca-file="$pki/ca.crt" \
    --requestheader-client-ca-file="$pki/front-proxy-ca.crt" \
    --cluster-signing-cert-file="$pki/ca.crt" --cluster-signing-key-file="$pki/ca.key" \
    --allocate-node-cidrs=true --cluster-cidr=$POD_CIDR --service-cluster-ip-range=$SERVICE_CIDR
}

start_scheduler() {
  # shellcheck disable=SC2046 # several flags
  start kube-scheduler "$BIN/kube-scheduler" $(kubeconfigs "$pki/scheduler.kubeconfig") --leader-elect=false
}

# The connection tracker's limits belong to the whole machine: left alone.
start_proxy() {
  start kube-proxy "$BIN/kube-proxy" --kubeconfig="$pki/proxy.kubeconfig" --proxy-mode=iptables \
    --cluster-cidr=$POD_CIDR --hostname-override=$NODE --bind-address=$NODE_IP \
    --conntrack-max-per-core=0 --conntrack-tcp-timeout-established=0s --conntrack-tcp-timeout-close-wait=0s \
    --metrics-bind-address=127.0.0.1:10249 --healthz-bind-address=127.0.0.1:10256
}

start_kubelet() {
  start kubelet "$BIN/kubelet" --config="$NODE_RUN/kubelet.yaml" --kubeconfig="$pki/kubelet.kubeconfig" \
    --root-dir="$NODE_RUN/kubelet" --cert-dir="$NODE_RUN/kubelet-certificates" \
    --hostname-override=$NODE --node-ip=$NODE_IP --v=2
}

hostname $NODE
mount_private_views
set_up_network
# From here on this process must outlive whatever fails.
set +e
start_etcd
start containerd /usr/bin/containerd --config "$NODE_RUN/containerd.toml"
start_api_server
import_images > "$log/images.log" 2>&1 &
until "$BIN/kubectl" --kubeconfig "$pki/admin.kubeconfig" get --raw /readyz >/dev/null 2>&1; do sleep 0.1; done
touch "$NODE_RUN/apiserver.ready"
start_controller_manager
start_scheduler
start_proxy
mkdir -p "$NODE_RUN/volumes"
start netpol "$BIN/netpol" --kubeconfig="$pki/admin.kubeconfig"
start local-provisioner "$BIN/local-provisioner" --kubeconfig="$pki/admin.kubeconfig" --dir="$NODE_RUN/volumes"
until [ -e "$NODE_RUN/images.imported" ]; do sleep 0.05; done
start_kubelet
touch "$NODE_RUN/kubelet.started"
# Process 1 adopts the containers' orphans, and says which component has ended. 127: there is nobody to wait for.
while :; do
  wait -n -p gone
  status=$?
  if [ $status = 127 ]; then sleep 1; else echo "$(date +%T) process ${gone:-?} ended: $status"; fi
done
