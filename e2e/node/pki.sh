#!/usr/bin/env bash
# pki.sh DIR: the node's certificate authorities, the certificates of its components, and their kubeconfigs.
set -euo pipefail
. "$(dirname "$0")/conf.sh"
mkdir -p "$1"
cd "$1"
days=3650

key() {
  openssl ecparam -genkey -name prime256v1 -noout -out "$1.key" 2>/dev/null
}

authority() {
  key "$1"
  openssl req -x509 -new -key "$1.key" -days $days -subj "/CN=$1" -out "$1.crt" \
    -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign,digitalSignature
}

# certificate NAME AUTHORITY SUBJECT USAGE [ALTERNATIVE_NAMES]
certificate() {
  key "$1"
  openssl req -new -key "$1.key" -subj "$3" -out "$1.csr"
  {
    echo 'basicConstraints=CA:FALSE'
    echo 'keyUsage=digitalSignature,keyEncipherment'
    echo "extendedKeyUsage=$4"
    [ -z "${5:-}" ] || echo "subjectAltName=$5"
  } > "$1.ext"
  openssl x509 -req -in "$1.csr" -CA "$2.crt" -CAkey "$2.key" -CAcreateserial -days $days -extfile "$1.ext" \
    -out "$1.crt" 2>/dev/null
  rm -f "$1.csr" "$1.ext"
}

# kubeconfig NAME SUBJECT: a client certificate, and the file that holds it.
kubeconfig() {
  certificate "$1" ca "$2" clientAuth
  cat > "$1.kubeconfig" <<END
apiVersion: v1
kind: Config
clusters:
- name: node
  cluster:
    server: https://127.0.0.1:6443
    certificate-authority-data: $(base64 -w0 < ca.crt)
users:
- name: $1
  user:
    client-certificate-data: $(base64 -w0 < "$1.crt")
    client-key-data: $(base64 -w0 < "$1.key")
contexts:
- name: $1@node
  context: {cluster: node, user: $1}
current-context: $1@node
END
}

authority ca
authority front-proxy-ca
key sa
openssl ec -in sa.key -pubout -out sa.pub 2>/dev/null
service=kubernetes.default.svc
certificate apiserver ca /CN=kube-apiserver serverAuth \
  "DNS:kubernetes,DNS:kubernetes.default,DNS:$service,DNS:$service.cluster.local,DNS:localhost,DNS:$NODE,IP:127.0.0.1,IP:$NODE_IP,IP:$API_SERVICE_IP"
certificate apiserver-kubelet-client ca /O=system:masters/CN=kube-apiserver-kubelet-client clientAuth
certificate front-proxy-client front-proxy-ca /CN=front-proxy-client clientAuth
certificate kubelet-serving ca "/O=system:nodes/CN=system:node:$NODE" serverAuth "DNS:$NODE,IP:$NODE_IP,IP:127.0.0.1"
kubeconfig admin /O=system:masters/CN=admin
kubeconfig controller-manager /CN=system:kube-controller-manager
kubeconfig scheduler /CN=system:kube-scheduler
kubeconfig proxy /CN=system:kube-proxy
kubeconfig kubelet "/O=system:nodes/CN=system:node:$NODE"
