# shellcheck shell=bash
# Sourced by up.sh: writes the configuration of containerd, of the pods' network and of the kubelet.

write_containerd_config() {
  cat > "$NODE_RUN/containerd.toml" <<END
version = 2
root = "$NODE_RUN/containerd"
state = "/run/containerd"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
  "io.containerd.internal.v1.tracing",
  "io.containerd.tracing.processor.v1.otlp",
]

[grpc]
  address = "$CONTAINERD_SOCKET"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "tarn.local/pause:e2e"
  # Without CAP_SYS_RESOURCE nothing may be given a lower score than our own, and the pause container is.
  restrict_oom_score_adj = true

  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"

    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"

      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false

  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$NODE_RUN/cni"
END
}

write_network_config() {
  mkdir -p "$NODE_RUN/cni"
  cat > "$NODE_RUN/cni/10-bridge.conflist" <<END
{
  "cniVersion": "0.4.0",
  "name": "$NODE",
  "plugins": [
    {
      "type": "bridge",
      "bridge": "cni0",
      "isGateway": true,
      "ipMasq": true,
      "hairpinMode": true,
      "ipam": {
        "type": "host-local",
        "ranges": [[{"subnet": "$NODE_POD_CIDR"}]],
        "routes": [{"dst": "0.0.0.0/0"}]
      }
    },
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
END
}

# Evictions and the collection of images are off: a full disk of the machine is not what the tests are about.
write_kubelet_config() {
  : > "$NODE_RUN/resolv.conf"
  cat > "$NODE_RUN/kubelet.yaml" <<END
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: $NODE_RUN/pki/ca.crt}
authorization: {mode: Webhook}
tlsCertFile: $NODE_RUN/pki/kubelet-serving.crt
tlsPrivateKeyFile: $NODE_RUN/pki/kubelet-serving.key
cgroupDriver: cgroupfs
cgroupRoot: /$CGROUP
failCgroupV1: false
failSwapOn: false
containerRuntimeEndpoint: unix://$CONTAINERD_SOCKET
clusterDNS: [$DNS_IP]
clusterDomain: cluster.local
resolvConf: $NODE_RUN/resolv.conf
podLogsDir: /var/log/pods
evictionHard:
  memory.available: "0%"
  nodefs.available: "0%"
  nodefs.inodesFree: "0%"
  imagefs.available: "0%"
  imagefs.inodesFree: "0%"
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
imageMinimumGCAge: 24h
registryPullQPS: 0
serializeImagePulls: false
nodeStatusUpdateFrequency: 5s
syncFrequency: 10s
fileCheckFrequency: 1h
maxPods: 110
shutdownGracePeriod: 0s
staticPodPath: ""
END
}
