{{- define "starlift.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "starlift.selector" -}}
app.kubernetes.io/name: starlift
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "starlift.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/version: {{ .Values.image.tag | default .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{ include "starlift.selector" . }}
{{- end }}

{{- define "starlift.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (include "starlift.name" .) }}
{{- end }}

{{- define "starlift.hasVolume" -}}
{{- if not .Values.store.location }}yes{{ end }}
{{- end }}

{{/* Pods of the job are not selected by the services. */}}
{{- define "starlift.warmSelector" -}}
app.kubernetes.io/name: starlift-warm
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}
