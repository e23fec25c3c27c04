{{/* Environment of `onebasis serve`: what the chart decides, then the options as given. */}}
{{- define "onebasis.serverEnv" -}}
- name: ONEBASIS_HOST
  value: 0.0.0.0
- name: ONEBASIS_PORT
  value: "8000"
- name: ONEBASIS_DEVICE
  value: {{ .Values.device }}
{{- if .Values.model.demo }}
- name: ONEBASIS_MODEL
  value: /models/base
- name: ONEBASIS_SERVED_MODEL_NAME
  value: {{ .Values.options.served_model_name | default "SmolLM2-135M-Instruct" | quote }}
- name: ONEBASIS_BASIS
  value: /models/basis.safetensors
{{- else }}
- name: ONEBASIS_MODEL
  value: /models/{{ .Values.model.path }}
{{- with .Values.model.basis }}
- name: ONEBASIS_BASIS
  value: /models/{{ . }}
{{- end }}
{{- end }}
- name: ONEBASIS_STORE
{{- if eq .Values.store.kind "sqlite" }}
  value: sqlite:////data/onebasis.db
{{- else }}
  valueFrom: { secretKeyRef: { name: {{ .Values.store.secret.name }}, key: {{ .Values.store.secret.key }} } }
{{- end }}
{{- if .Values.auth.allowUnauthenticated }}
- name: ONEBASIS_ALLOW_UNAUTHENTICATED
  value: "true"
{{- else }}
- name: ONEBASIS_API_KEYS_FILE
  value: /etc/onebasis/api-keys
{{- end }}
- name: ONEBASIS_SHUTDOWN_DELAY_S
  value: {{ .Values.lifecycle.shutdownDelaySeconds | quote }}
- name: ONEBASIS_DRAIN_S
  value: {{ .Values.lifecycle.drainSeconds | quote }}
{{- if not (or .Values.options.threads (eq (include "onebasis.engine" .) "vllm")) }}
- name: ONEBASIS_THREADS
  valueFrom: { resourceFieldRef: { resource: limits.cpu } }
{{- end }}
{{- range $option, $value := .Values.options }}
{{- if not (and $.Values.model.demo (eq $option "served_model_name")) }}
- name: ONEBASIS_{{ $option | upper }}
  value: {{ ternary (join " " $value) (include "onebasis.plain" $value) (kindIs "slice" $value) | quote }}
{{- end }}
{{- end }}
{{- end }}

{{/* A number as people write it: a large one would come as 3.3554432e+07. */}}
{{- define "onebasis.plain" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) }}{{ int64 . }}{{ else }}{{ . }}{{ end }}
{{- end }}
