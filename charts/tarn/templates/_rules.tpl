{{/*
What the operator may do in the namespaces it looks after; docs/operator.md says what for. It must itself hold what it
grants to agents, or the API server refuses their Roles.
*/}}
{{- define "tarn.operatorRules" -}}
# What it reconciles.
- apiGroups: [tarn.dev]
  resources: [gitcaches, gitmirrors]
  verbs: [list, watch]
# The finalizer of those whose objects in the store are to go with them.
- apiGroups: [tarn.dev]
  resources: [gitmirrors]
  verbs: [patch]
- apiGroups: [tarn.dev]
  resources: [gitcaches/status, gitmirrors/status]
  verbs: [patch]
# Not used: by this right the admission policy knows who is not held to one entry of a status.
- apiGroups: [tarn.dev]
  resources: [gitmirrors/status]
  verbs: [update]
# Where OwnerReferencesPermissionEnforcement is on, who makes objects that a GitCache owns needs this.
- apiGroups: [tarn.dev]
  resources: [gitcaches/finalizers]
  verbs: [update]
# What it makes of a GitCache. A StatefulSet is deleted, without its pods, to be made anew.
- apiGroups: [apps]
  resources: [statefulsets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [serviceaccounts, services]
  verbs: [get, create, patch]
- apiGroups: [rbac.authorization.k8s.io]
  resources: [roles, rolebindings]
  verbs: [get, create, patch]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, create, patch]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, create, patch]
# Volumes grow.
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [list, patch]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch]
# It asks for their metadata alone, but RBAC knows no such distinction; and it grants reading them, by name, to agents.
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, list, watch]
# It watches the agents' Leases, and grants agents to write those of their own cache, by name.
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [list, watch, create, patch]
# Granted to agents, not used.
- apiGroups: [authorization.k8s.io]
  resources: [localsubjectaccessreviews]
  verbs: [create]
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  verbs: [list, watch]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end }}
