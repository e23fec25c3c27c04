{{- define "onebasis.name" -}}
{{- ternary .Release.Name (print .Release.Name "-" .Chart.Name) (contains .Chart.Name .Release.Name) | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "onebasis.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "onebasis.labels" -}}
{{ include "onebasis.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{- define "onebasis.engine" -}}
{{ .Values.options.engine | default "native" }}
{{- end }}

{{- define "onebasis.image" -}}
{{- $variant := print (ternary "-cuda" "" (eq .Values.device "cuda")) (ternary "-vllm" "" (eq (include "onebasis.engine" .) "vllm")) -}}
{{- $tag := .Values.image.tag | default (print .Chart.AppVersion $variant) -}}
{{ .Values.image.repository }}{{ with .Values.image.digest }}@{{ . }}{{ else }}:{{ $tag }}{{ end }}
{{- end }}

{{- define "onebasis.keysSecret" -}}
{{ if .Values.auth.keys }}{{ include "onebasis.name" . }}-keys{{ else }}{{ .Values.auth.existingSecret }}{{ end }}
{{- end }}

{{/* Values of a pod that are the same for the server, the Job and the test. */}}
{{- define "onebasis.pod" -}}
serviceAccountName: {{ include "onebasis.name" . }}
automountServiceAccountToken: false
enableServiceLinks: false # its variables begin with the release's name, as do the server's own
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  seccompProfile: { type: RuntimeDefault }
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "onebasis.container" -}}
image: {{ include "onebasis.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: { drop: [ALL] }
{{- end }}

{{/* Where the Job and the test find the server, and with which key. */}}
{{- define "onebasis.clientEnv" -}}
- name: ONEBASIS_URL
  value: http://{{ include "onebasis.name" . }}:{{ .Values.service.port }}
{{- if not .Values.auth.allowUnauthenticated }}
- name: ONEBASIS_API_KEY
  valueFrom: { secretKeyRef: { name: {{ include "onebasis.keysSecret" . }}, key: client-key } }
{{- end }}
{{- end }}

{{/* Pods of the demo fill their own volume. */}}
{{- define "onebasis.unpackDemo" -}}
- name: unpack-demo
  {{- include "onebasis.container" . | nindent 2 }}
  args: [demo, unpack, /models]
  resources:
    requests: { cpu: 500m, memory: 2Gi }
    limits: { memory: 2Gi }
  volumeMounts:
    - { name: models, mountPath: /models }
    - { name: tmp, mountPath: /tmp }
    - { name: cache, mountPath: /cache }
{{- end }}

{{/* Values that are right one by one and wrong together. */}}
{{- define "onebasis.check" -}}
{{- $scaled := ne .Values.autoscaling.kind "none" }}
{{- if and (eq .Values.store.kind "sqlite") (or $scaled (gt (int .Values.replicas) 1)) }}
{{- fail "store.kind sqlite is for one replica: set replicas to 1 and autoscaling.kind to none, or store.kind to postgresql" }}
{{- end }}
{{- if gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas) }}
{{- fail "autoscaling.minReplicas is more than autoscaling.maxReplicas" }}
{{- end }}
{{- if and .Values.auth.allowUnauthenticated .Values.auth.keys }}
{{- fail "auth.allowUnauthenticated contradicts auth.keys: drop one" }}
{{- end }}
{{- with .Values.auth.keys }}
{{- if or (not (has "generate" (first .).scopes)) (not (has "register" (first .).scopes)) (first .).tenant }}
{{- fail "auth.keys: the first key serves the register Job and helm test, so it needs the scopes generate and register and no tenant" }}
{{- end }}
{{- end }}
{{- if and .Values.gateway.inferencePool.enabled .Values.options.protect_metrics }}
{{- fail "options.protect_metrics shuts out the endpoint picker of gateway.inferencePool, which scrapes without a key: drop one" }}
{{- end }}
{{- if and .Values.monitoring.serviceMonitor.enabled .Values.options.protect_metrics .Values.auth.allowUnauthenticated }}
{{- fail "monitoring.serviceMonitor has no key for options.protect_metrics where auth.allowUnauthenticated is set: drop one" }}
{{- end }}
{{- if and (or .Values.gateway.objectives .Values.gateway.rewrites) (not .Values.gateway.inferencePool.enabled) }}
{{- fail "gateway.objectives and gateway.rewrites are read by an endpoint picker: set gateway.inferencePool.enabled" }}
{{- end }}
{{- if and .Values.register.enabled (not .Values.register.volume) (not .Values.model.demo) }}
{{- fail "register.enabled needs register.volume, a volume with *.coef.safetensors (or model.demo)" }}
{{- end }}
{{- if and .Values.register.enabled (not .Values.model.basis) (not .Values.model.demo) }}
{{- fail "register.enabled needs model.basis: a server of the base alone takes no tasks" }}
{{- end }}
{{- if hasKey .Values.resources.limits "nvidia.com/gpu" }}
{{- fail "resources.limits: the chart counts nvidia.com/gpu itself, from device and options.tensor_parallel_size" }}
{{- end }}
{{- $none := list "0" "0%" }}
{{- with .Values.strategy }}
{{- if and (eq .type "RollingUpdate") .rollingUpdate (has (toString .rollingUpdate.maxSurge) $none) (has (toString .rollingUpdate.maxUnavailable) $none) }}
{{- fail "strategy.rollingUpdate: with maxSurge 0 and maxUnavailable 0 no pod could be replaced; set one of them to 1" }}
{{- end }}
{{- end }}
{{- range list "tensor_parallel_size" "pipeline_parallel_size" }}
{{- if and (gt (int (get $.Values.options .)) 1) (ne (include "onebasis.engine" $) "vllm") }}
{{- fail (printf "options.%s is for options.engine vllm: the native engine computes on one GPU" .) }}
{{- end }}
{{- end }}
{{- if eq (.Values.options.distributed_executor_backend | default "mp") "ray" }}
{{- fail "options.distributed_executor_backend ray: a release of this chart serves from pods of their own; see deploy/MULTI-NODE.md" }}
{{- end }}
{{- if and .Values.options.max_running .Values.options.max_step_tokens (lt (int .Values.options.max_step_tokens) (int .Values.options.max_running)) }}
{{- fail "options.max_step_tokens must be at least options.max_running" }}
{{- end }}
{{- end }}
