{{- define "stepway.daprPrefix" -}}
{{ default (printf "%s-" (include "stepway.fullname" .)) .Values.dapr.prefix }}
{{- end }}

{{/* Who may call whom, on which path: (dict callee (dict caller paths)). All else is refused. */}}
{{- define "stepway.calls" -}}
app:
  model: [jobs, app]
  cluster: [jobs, app, observer]
  flow: [jobs, app, flow]
  gateway: [gateway]
model:
  app: [runs]
cluster:
  app: [runs, reach]
flow:
  app: [runs]
gateway: {}
{{- end }}

{{- define "stepway.daprConfiguration" -}}
{{- $prefix := include "stepway.daprPrefix" .root -}}
apiVersion: dapr.io/v1alpha1
kind: Configuration
metadata:
  name: {{ $prefix }}{{ .service }}
  labels: {{- include "stepway.labels" (dict "root" .root "component" .service) | nindent 4 }}
spec:
  accessControl:
    defaultAction: deny
    trustDomain: public
    {{- $root := .root }}
    {{- with index (include "stepway.calls" . | fromYaml) .service }}
    policies:
      {{- range $caller, $ports := . }}
      - appId: {{ $prefix }}{{ $caller }}
        defaultAction: deny
        trustDomain: public
        namespace: {{ $root.Release.Namespace }}
        operations:
          {{- range $ports }}
          - {name: /internal/{{ . }}/**, httpVerb: [POST], action: allow}
          {{- end }}
      {{- end }}
    {{- end }}
  secrets:
    scopes:
      - {storeName: environment, defaultAccess: deny}
      - {storeName: kubernetes, defaultAccess: deny}
  {{- if eq .root.Values.dapr.mode "sidecars" }}
  nameResolution:
    component: kubernetes
    configuration: {clusterDomain: {{ .root.Values.dapr.clusterDomain }}}
  {{- end }}
  {{- with .root.Values.settings.otlp_endpoint }}
  tracing:
    samplingRate: {{ $root.Values.settings.trace_ratio | default 1 | toString | quote }}
    otel:
      endpointAddress: {{ regexReplaceAll "^https?://" . "" | quote }}
      isSecure: {{ hasPrefix "https://" . }}
      protocol: http
  {{- end }}
{{- end }}

{{- define "stepway.daprComponents" -}}
{{- $prefix := include "stepway.daprPrefix" . -}}
{{- $labels := include "stepway.labels" (dict "root" .) -}}
apiVersion: dapr.io/v1alpha1
kind: Component
metadata:
  name: environment
  labels: {{- $labels | nindent 4 }}
spec:
  type: secretstores.local.env
  version: v1
scopes: [{{ $prefix }}model, {{ $prefix }}cluster, {{ $prefix }}flow]
---
apiVersion: dapr.io/v1alpha1
kind: Component
metadata:
  name: workflows
  labels: {{- $labels | nindent 4 }}
spec:
  type: state.postgresql
  version: v2
  metadata:
    - name: connectionString
      secretKeyRef: {name: STEPWAY_DAPR_DATABASE_URL, key: STEPWAY_DAPR_DATABASE_URL}
    - {name: tablePrefix, value: dapr_}
    - {name: actorStateStore, value: "true"}
auth: {secretStore: environment}
scopes: [{{ $prefix }}model, {{ $prefix }}cluster, {{ $prefix }}flow]
---
apiVersion: dapr.io/v1alpha1
kind: Resiliency
metadata:
  name: {{ include "stepway.fullname" . }}
  labels: {{- $labels | nindent 4 }}
spec:
  policies:
    retries:
      again: {policy: constant, duration: 100ms, maxRetries: 2}
  targets:
    apps:
      {{- range splitList " " (include "stepway.services" . | trim) }}
      {{ $prefix }}{{ . }}: {retry: again}
      {{- end }}
{{- end }}

{{/* What Dapr's injector is told, and sentry where it reviews tokens of Kubernetes. */}}
{{- define "stepway.daprAnnotations" -}}
{{- $root := .root -}}
{{- $prefix := include "stepway.daprPrefix" .root -}}
dapr.io/enabled: "true"
dapr.io/app-id: {{ $prefix }}{{ .service }}
dapr.io/app-port: "8401"
dapr.io/config: {{ $prefix }}{{ .service }}
dapr.io/api-token-secret: {{ include "stepway.apiTokenSecret" .root }}
dapr.io/app-token-secret: {{ include "stepway.appTokenSecret" .root }}
{{- if has .service (list "model" "cluster" "flow") }}
dapr.io/env-from-secret: STEPWAY_DAPR_DATABASE_URL={{ include "stepway.databaseSecret" .root }}:dapr-url
{{- end }}
dapr.io/disable-builtin-k8s-secret-store: "true"
dapr.io/sidecar-listen-addresses: 127.0.0.1
dapr.io/sidecar-seccomp-profile-type: RuntimeDefault
dapr.io/max-body-size: {{ .root.Values.dapr.maxBodySize }}
dapr.io/log-level: {{ .root.Values.dapr.logLevel }}
dapr.io/log-as-json: "true"
{{/* the sidecar works on while the service ends its work */ -}}
dapr.io/block-shutdown-duration: 20s
dapr.io/graceful-shutdown-seconds: "5"
{{- with .root.Values.dapr.resources }}
dapr.io/sidecar-cpu-request: {{ .requests.cpu | quote }}
dapr.io/sidecar-memory-request: {{ .requests.memory | quote }}
{{- with .limits.memory }}
dapr.io/sidecar-memory-limit: {{ . | quote }}
{{- end }}
{{- end }}
{{- end }}

{{/* Of every process of Dapr in the mode `sidecars`: who it is, for sentry and for the others. */}}
{{- define "stepway.daprEnvironment" -}}
- {name: NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
- {name: DAPR_HOST_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
- {name: DAPR_SENTRY_TOKEN_FILE, value: /var/run/stepway/identity/token}
{{- end }}

{{/* Takes (dict "root" $ "service" "app"): a container that starts before and ends after the service. */}}
{{- define "stepway.daprd" -}}
{{- $dapr := .root.Values.dapr -}}
{{- $name := include "stepway.fullname" .root -}}
- name: daprd
  image: {{ $dapr.image }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  restartPolicy: Always
  command: {{ $dapr.command | toJson }}
  args:
    - --mode=standalone
    - --app-id={{ include "stepway.daprPrefix" .root }}{{ .service }}
    - --app-port=8401
    - --dapr-http-port=3500
    - --dapr-grpc-port=50001
    - --dapr-internal-grpc-port=50002
    - --dapr-public-port=3501
    - --dapr-listen-addresses=127.0.0.1
    - --metrics-port=9090
    - --resources-path=/etc/dapr/resources
    - --config=/etc/dapr/configuration/{{ .service }}.yaml
    - --placement-host-address={{ $name }}-dapr-placement:50005
    - --scheduler-host-address={{ $name }}-dapr-scheduler:50006
    - --enable-mtls
    - --sentry-address={{ $name }}-dapr-sentry:50003
    - --control-plane-trust-domain={{ $dapr.trustDomain }}
    - --control-plane-namespace={{ .root.Release.Namespace }}
    - --max-body-size={{ $dapr.maxBodySize }}
    - --dapr-graceful-shutdown-seconds=5
    - --log-level={{ $dapr.logLevel }}
    - --log-as-json
  env:
    {{- include "stepway.daprEnvironment" .root | nindent 4 }}
    - {name: DAPR_TRUST_ANCHORS, valueFrom: {secretKeyRef: {name: {{ $name }}-dapr-trust, key: ca.crt}}}
    - {name: DAPR_API_TOKEN, valueFrom: {secretKeyRef: {name: {{ include "stepway.apiTokenSecret" .root }}, key: token}}}
    - {name: APP_API_TOKEN, valueFrom: {secretKeyRef: {name: {{ include "stepway.appTokenSecret" .root }}, key: token}}}
    {{- if has .service (list "model" "cluster" "flow") }}
    - {name: STEPWAY_DAPR_DATABASE_URL, valueFrom: {secretKeyRef: {name: {{ include "stepway.databaseSecret" .root }}, key: dapr-url}}}
    {{- end }}
  ports:
    - {name: dapr-internal, containerPort: 50002}
    - {name: dapr-health, containerPort: 3501}
  readinessProbe:
    httpGet: {path: /v1.0/healthz, port: dapr-health}
    periodSeconds: 5
    timeoutSeconds: 3
    failureThreshold: 6
  livenessProbe:
    httpGet: {path: /v1.0/healthz/outbound, port: dapr-health}
    initialDelaySeconds: 30
    periodSeconds: 10
    timeoutSeconds: 5
    failureThreshold: 6
  securityContext: {{- include "stepway.containerSecurity" .root | nindent 4 }}
  resources: {{- $dapr.resources | toYaml | nindent 4 }}
  volumeMounts:
    - {name: dapr, mountPath: /etc/dapr, readOnly: true}
    - {name: dapr-identity, mountPath: /var/run/stepway/identity, readOnly: true}
{{- end }}
