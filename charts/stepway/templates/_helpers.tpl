{{- define "stepway.services" -}}
app model cluster flow gateway
{{- end }}

{{- define "stepway.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 30 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) | trunc 30 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{- define "stepway.chart" -}}
{{ .Chart.Name }}-{{ .Chart.Version | replace "+" "_" }}
{{- end }}

{{/* Labels of all; with `component` those of one part. Takes (dict "root" $ "component" "app"). */}}
{{- define "stepway.labels" -}}
helm.sh/chart: {{ include "stepway.chart" .root }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
{{ include "stepway.selector" . }}
{{- end }}

{{- define "stepway.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end }}

{{- define "stepway.image" -}}
{{- $image := .root.Values.image -}}
{{- $repository := $image.repository | replace "{service}" .service -}}
{{- if $image.digest -}}
{{ $repository }}@{{ $image.digest }}
{{- else -}}
{{ $repository }}:{{ default .root.Chart.AppVersion $image.tag }}
{{- end -}}
{{- end }}

{{- define "stepway.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{/* The restricted standard of pod security. */}}
{{- define "stepway.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ . }}
runAsGroup: {{ . }}
fsGroup: {{ . }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "stepway.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{/* Where the database's URLs are. */}}
{{- define "stepway.databaseSecret" -}}
{{ default (printf "%s-database" (include "stepway.fullname" .)) .Values.database.existingSecret }}
{{- end }}

{{- define "stepway.objectsSecret" -}}
{{ default (printf "%s-objects" (include "stepway.fullname" .)) .Values.objects.existingSecret }}
{{- end }}

{{- define "stepway.objectsEndpoint" -}}
{{- if .Values.objects.bundled.enabled -}}
http://{{ include "stepway.fullname" . }}-minio:9000
{{- else -}}
{{ .Values.objects.endpoint }}
{{- end -}}
{{- end }}

{{- define "stepway.keysSecret" -}}
{{ default (printf "%s-keys" (include "stepway.fullname" .)) .Values.secrets.existingSecret }}
{{- end }}

{{- define "stepway.apiTokenSecret" -}}
{{ default (printf "%s-dapr-api-token" (include "stepway.fullname" .)) .Values.secrets.existingDaprApiTokenSecret }}
{{- end }}

{{- define "stepway.appTokenSecret" -}}
{{ default (printf "%s-dapr-app-token" (include "stepway.fullname" .)) .Values.secrets.existingDaprAppTokenSecret }}
{{- end }}

{{/* The value of a key that a Secret of this release has already; nothing where there is none. */}}
{{- define "stepway.kept" -}}
{{- $found := lookup "v1" "Secret" .root.Release.Namespace .name -}}
{{- if $found -}}
{{- index ($found.data | default dict) .key | default "" | b64dec -}}
{{- end -}}
{{- end }}
