{{/* Names and labels that several templates share. */}}

{{- define "tarn.operator" -}}
{{ printf "%s-operator" .Release.Name | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "tarn.image" -}}
{{- $repository := required "image.repository is not set: name the image that the Dockerfile makes, such as --set image.repository=registry.example.com/tarn" .Values.image.repository -}}
{{ $repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{/* Labels by which the operator's pods are selected; they never change. */}}
{{- define "tarn.selector" -}}
app.kubernetes.io/name: tarn-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "tarn.labels" -}}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: tarn
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{/* Labels and a user's own, of which none takes the place of the chart's: list LABELS OWN. */}}
{{- define "tarn.merged" -}}
{{ toYaml (merge (index . 0 | fromYaml) (index . 1)) }}
{{- end }}

{{- define "tarn.operatorLabels" -}}
app.kubernetes.io/name: tarn-operator
{{ include "tarn.labels" . }}
{{- end }}
