{{- define "starlift-agent.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "starlift-agent.selector" -}}
app.kubernetes.io/name: starlift-agent
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "starlift-agent.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/version: {{ .Values.image.tag | default .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{ include "starlift-agent.selector" . }}
{{- end }}

{{- define "starlift-agent.command" -}}
{{- $flags := list }}
{{- if eq .Values.mode "install" }}
{{- $flags = append $flags "--config /etc/starlift/agent.toml" }}
{{- if .Values.server }}
{{- $flags = append $flags (printf "--server %s" (squote .Values.server)) }}
{{- range .Values.registries }}
{{- $flags = append $flags (printf "--registry %s" (squote .)) }}
{{- end }}
{{- end }}
{{- end }}
{{- range .Values.extraArgs }}
{{- $flags = append $flags (squote .) }}
{{- end }}
{{- printf "agent %s %s" .Values.mode (join " " $flags) | trimSuffix " " }}
{{- end }}
