{{/* Environment of a service. Takes (dict "root" $ "service" "app"). */}}
{{- define "stepway.environment" -}}
{{- $root := .root -}}
{{- $service := .service -}}
{{- $name := include "stepway.fullname" .root -}}
- {name: STEPWAY_HOST, value: 0.0.0.0}
- {name: STEPWAY_PORT, value: "8400"}
- {name: STEPWAY_INTERNAL_PORT, value: "8401"}
- {name: STEPWAY_METRICS_HOST, value: 0.0.0.0}
- {name: STEPWAY_METRICS_PORT, value: "9464"}
- {name: STEPWAY_DATA_DIR, value: /var/lib/stepway}
- {name: STEPWAY_LOG_FORMAT, value: json}
- {name: STEPWAY_DAPR_PREFIX, value: {{ include "stepway.daprPrefix" .root }}}
- {name: STEPWAY_ALLOWED_HOSTS, value: {{ include "stepway.hosts" .root | quote }}}
- {name: DAPR_HTTP_PORT, value: "3500"}
- {name: DAPR_GRPC_PORT, value: "50001"}
- {name: DAPR_API_TOKEN, valueFrom: {secretKeyRef: {name: {{ include "stepway.apiTokenSecret" .root }}, key: token}}}
- {name: APP_API_TOKEN, valueFrom: {secretKeyRef: {name: {{ include "stepway.appTokenSecret" .root }}, key: token}}}
{{- if eq .service "app" }}
- {name: DATABASE_URL, valueFrom: {secretKeyRef: {name: {{ include "stepway.databaseSecret" .root }}, key: url}}}
- {name: STEPWAY_KEY_FILE, value: /var/run/stepway/keys/encryption.key}
- {name: STEPWAY_GATEWAY_URL, value: http://{{ $name }}-gateway}
- {name: STEPWAY_SERVICE_SECRET, valueFrom: {secretKeyRef: {name: {{ include "stepway.keysSecret" .root }}, key: service-secret}}}
{{- else }}
- {name: STEPWAY_SERVICE_KEY, valueFrom: {secretKeyRef: {name: {{ include "stepway.keysSecret" .root }}, key: service-key-{{ .service }}}}}
{{- end }}
{{- if ne .service "gateway" }}
{{- with .root.Values.objects }}
- {name: STEPWAY_S3_ENDPOINT, value: {{ include "stepway.objectsEndpoint" $root | quote }}}
- {name: STEPWAY_S3_BUCKET, value: {{ .bucket | quote }}}
- {name: STEPWAY_S3_PREFIX, value: {{ .prefix | quote }}}
- {name: STEPWAY_S3_REGION, value: {{ .region | quote }}}
- {name: STEPWAY_S3_ACCESS_KEY, valueFrom: {secretKeyRef: {name: {{ include "stepway.objectsSecret" $root }}, key: access-key}}}
- {name: STEPWAY_S3_SECRET_KEY, valueFrom: {secretKeyRef: {name: {{ include "stepway.objectsSecret" $root }}, key: secret-key}}}
{{- if .caSecret }}
- {name: STEPWAY_S3_CA, value: /var/run/stepway/objects/ca.crt}
{{- end }}
{{- end }}
{{- end }}
{{- range $key, $value := omit .root.Values.settings "allowed_hosts" }}
- name: {{ eq $key "hf_endpoint" | ternary "HF_ENDPOINT" (print "STEPWAY_" (upper $key)) }}
  value: {{ kindIs "slice" $value | ternary (join "," (kindIs "slice" $value | ternary $value list)) (kindIs "float64" $value | ternary (toJson $value) (toString $value)) | quote }}
{{- end }}
{{- end }}

{{/* Names under which requests may come: this cluster's for the services, the ingress's, and more that are given. */}}
{{- define "stepway.hosts" -}}
{{- $hosts := list "127.0.0.1" "localhost" -}}
{{- range $service := list "app" "gateway" -}}
{{- $own := printf "%s-%s" (include "stepway.fullname" $) $service -}}
{{- $spaced := printf "%s.%s" $own $.Release.Namespace -}}
{{- $hosts = concat $hosts (list $own $spaced (print $spaced ".svc") (printf "%s.svc.%s" $spaced $.Values.dapr.clusterDomain)) -}}
{{- end -}}
{{- if .Values.ingress.enabled -}}{{- $hosts = append $hosts .Values.ingress.host -}}{{- end -}}
{{- if .Values.httpRoute.enabled -}}{{- $hosts = append $hosts .Values.httpRoute.host -}}{{- end -}}
{{- concat $hosts (.Values.settings.allowed_hosts | default list) | uniq | join "," -}}
{{- end }}
