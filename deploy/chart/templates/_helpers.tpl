{{- define "orlop.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- /* Of a component: (list . "NAME"). */}}
{{- define "orlop.selector" -}}
app.kubernetes.io/name: {{ (index . 0).Chart.Name }}
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "orlop.labels" -}}
{{ include "orlop.selector" . }}
app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
{{- end }}

{{- /* Its account, and that account's rights in the whole cluster. */}}
{{- define "orlop.account" -}}
{{- $root := index . 0 }}
{{- $name := printf "orlop-%s" (index . 1) -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ $name }}
  namespace: {{ $root.Release.Namespace }}
  labels: {{- include "orlop.labels" . | nindent 4 }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  name: {{ $name }}
  labels: {{- include "orlop.labels" . | nindent 4 }}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: {{ $name }}}
subjects:
  - {kind: ServiceAccount, name: {{ $name }}, namespace: {{ $root.Release.Namespace }}}
{{- end }}

{{- define "orlop.read" -}}
- apiGroups: [orlop.io]
  resources: [clusters, nodes, nodereplicas, pools, disks, volumes, volumerecords, volumestatuses]
  verbs: [get, list, watch]
{{- end }}

{{- /* What all pods say. */}}
{{- define "orlop.pod" -}}
serviceAccountName: orlop-{{ index . 1 }}
enableServiceLinks: false
{{- with (index . 0).Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with (index (index . 0).Values (index . 1)).nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with (index (index . 0).Values (index . 1)).tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "orlop.container" -}}
image: {{ include "orlop.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
command: [orlop]
terminationMessagePolicy: FallbackToLogsOnError
{{- end }}

{{- define "orlop.unprivileged" -}}
securityContext:
  allowPrivilegeEscalation: false
  capabilities: {drop: [ALL]}
  readOnlyRootFilesystem: true
{{- end }}

{{- /* An environment variable from the pod: (list "NAME" "FIELD"). */}}
{{- define "orlop.env" -}}
- name: {{ index . 0 }}
  valueFrom: {fieldRef: {fieldPath: {{ index . 1 }}}}
{{- end }}

{{- /*
Of a plugin: whether it answers on its socket at all. Whether it is ready is up to the API server, and a new process
would not change that; so there is no readiness of it either. Calls that take long do not keep it from answering.
*/}}
{{- define "orlop.pluginAlive" -}}
livenessProbe:
  exec: {command: [orlop, probe, "unix:///csi/csi.sock"]}
  periodSeconds: 30
  timeoutSeconds: 10
  failureThreshold: 5
{{- end }}
