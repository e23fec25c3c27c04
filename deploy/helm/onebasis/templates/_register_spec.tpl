{{- define "onebasis.registerSpec" -}}
backoffLimit: 3
activeDeadlineSeconds: {{ add .Values.register.timeoutSeconds 600 }}
template:
  metadata:
    labels:
      {{- include "onebasis.labels" . | nindent 6 }}
      app.kubernetes.io/component: register
  spec:
    {{- include "onebasis.pod" . | nindent 4 }}
    restartPolicy: Never
    initContainers:
      {{- if not .Values.register.volume }}
      {{- include "onebasis.unpackDemo" . | nindent 6 }}
      {{- end }}
      - name: wait
        {{- include "onebasis.container" . | nindent 8 }}
        command: [onebasis-client]
        args: [wait, --timeout-s, {{ .Values.register.timeoutSeconds | quote }}]
        env: {{- include "onebasis.clientEnv" . | nindent 10 }}
        resources: &small
          requests: { cpu: 100m, memory: 128Mi }
          limits: { memory: 256Mi }
    containers:
      - name: register
        {{- include "onebasis.container" . | nindent 8 }}
        command: [onebasis-client]
        args:
          - reconcile
          - {{ if .Values.register.volume }}{{ print "/tasks/" .Values.register.path | trimSuffix "/" }}{{ else }}/models/tasks{{ end }}
          - --owner={{ .Release.Name }}
          {{- if .Values.register.prune }}
          - --prune
          {{- end }}
        env: {{- include "onebasis.clientEnv" . | nindent 10 }}
        resources: *small
        volumeMounts:
          {{- if .Values.register.volume }}
          - { name: tasks, mountPath: /tasks, readOnly: true }
          {{- else }}
          - { name: models, mountPath: /models, readOnly: true }
          {{- end }}
    volumes:
      {{- if .Values.register.volume }}
      - name: tasks
        {{- toYaml .Values.register.volume | nindent 8 }}
      {{- else }}
      - { name: models, emptyDir: {} }
      - { name: tmp, emptyDir: {} }
      - { name: cache, emptyDir: {} }
      {{- end }}
{{- end }}
