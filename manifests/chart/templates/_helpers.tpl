{{- /* What is behind the names of a revision's objects. */ -}}
{{- define "weir.suffix" -}}
{{- if and .Values.revision (ne .Values.revision "default") }}-{{ .Values.revision }}{{ end -}}
{{- end -}}

{{- define "weir.revision" -}}
{{- .Values.revision | default "default" -}}
{{- end -}}

{{- define "weir.webhook" -}}
weir-webhook{{ include "weir.suffix" . }}
{{- end -}}

{{- define "weir.webhookAccount" -}}
{{- .Values.webhook.serviceAccount.name | default (include "weir.webhook" .) -}}
{{- end -}}

{{- define "weir.nodeAccount" -}}
{{- .Values.node.serviceAccount.name | default "weir-agent" -}}
{{- end -}}

{{- /* The webhook itself is in this cluster. */ -}}
{{- define "weir.serves" -}}
{{- if and .Values.webhook.enabled (not .Values.webhook.url) }}true{{ end -}}
{{- end -}}

{{- define "weir.hasNode" -}}
{{- if eq (toString .Values.node.enabled) "auto" -}}
{{- if not (include "weir.suffix" .) }}true{{ end -}}
{{- else if .Values.node.enabled -}}
true
{{- end -}}
{{- end -}}

{{- /* The policies are for the whole cluster: with `auto` they come with the default revision, where the API server has them (1.30). */ -}}
{{- define "weir.hasPolicies" -}}
{{- if .Values.webhook.enabled -}}
{{- if eq (toString .Values.admissionPolicies.enabled) "auto" -}}
{{- $minor := index (splitList "." .Capabilities.KubeVersion.Version) 1 | atoi -}}
{{- if and (not (include "weir.suffix" .)) (ge $minor 30) }}true{{ end -}}
{{- else if .Values.admissionPolicies.enabled -}}
true
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* Value of the webhook's --cni-mode; empty where the values decide. */ -}}
{{- define "weir.cniMode" -}}
{{- if ne (toString .Values.config.cniMode) "auto" -}}
{{ .Values.config.cniMode }}
{{- else if and (eq .Values.config.from "istio") (ne (toString .Values.node.enabled) "false") -}}
true
{{- end -}}
{{- end -}}

{{- /* Namespaces whose pods are never sent to the webhook, one per line. */ -}}
{{- define "weir.excludedNamespaces" -}}
kube-system
kube-public
kube-node-lease
local-path-storage
{{ .Release.Namespace }}
weir-node
gke-managed-system
gke-managed-cim
gke-managed-filestorecsi
gke-managed-parallelstorecsi
gke-managed-volumepopulator
gke-managed-checkpointing
gke-gmp-system
gmp-system
aks-command
{{- range .Values.webhook.excludedNamespaces }}
{{ . }}
{{- end }}
{{- end -}}

{{- /* An image. Given: root; name: webhook, agent or cli. */ -}}
{{- define "weir.image" -}}
{{- $images := .root.Values.images -}}
{{- $whole := get $images .name -}}
{{- if $whole -}}
{{- $whole -}}
{{- else -}}
{{- with $images.hub }}{{ trimSuffix "/" . }}/{{ end }}weir{{ if ne .name "cli" }}-{{ .name }}{{ end }}:{{ $images.tag | default .root.Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "weir.labels" -}}
app.kubernetes.io/name: weir-webhook
app.kubernetes.io/part-of: weir
app.kubernetes.io/managed-by: {{ .Release.Service }}
weir.dev/rev: {{ include "weir.revision" . | quote }}
{{- end -}}

{{- define "weir.selector" -}}
app.kubernetes.io/name: weir-webhook
weir.dev/rev: {{ include "weir.revision" . | quote }}
{{- end -}}

{{- define "weir.nodeLabels" -}}
app.kubernetes.io/name: weir-agent
app.kubernetes.io/part-of: weir
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "weir.observabilityLabels" -}}
app.kubernetes.io/name: weir-observability
app.kubernetes.io/part-of: weir
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- /* The row of the platform, with what it does not say from that of kubeadm; as YAML. */ -}}
{{- define "weir.platform" -}}
{{- if not (hasKey .Values.platforms .Values.platform) -}}
{{- fail (printf "platform %q is none of %s" .Values.platform (keys .Values.platforms | sortAlpha | join ", ")) -}}
{{- end -}}
{{- $row := get .Values.platforms .Values.platform -}}
{{- range $key, $default := get .Values.platforms "kubeadm" }}
{{ $key }}: {{ if hasKey $row $key }}{{ get $row $key | toJson }}{{ else }}{{ $default | toJson }}{{ end }}
{{- end }}
name: {{ $row.name | default "" | quote }}
{{- end -}}

{{- /* Entries of a webhook configuration. Given: root; name, the revision or tag that labels say. */ -}}
{{- define "weir.entries" -}}
{{- $default := eq .name "default" }}
{{- $prefixes := list "rev.namespace." "rev.object." }}
{{- if $default }}
{{- $prefixes = concat $prefixes (list "namespace." "object.") }}
{{- if .root.Values.webhook.enableNamespacesByDefault }}
{{- $prefixes = append $prefixes "auto." }}
{{- end }}
{{- end }}
{{- $off := and $default .root.Values.webhook.deactivated }}
{{- $webhook := .root.Values.webhook }}
{{- $root := .root }}
{{- $name := .name }}
{{- range $prefix := $prefixes }}
- name: {{ $prefix }}sidecar-injector.weir.dev
  admissionReviewVersions: [v1]
  clientConfig:
    {{- if $webhook.url }}
    url: {{ $webhook.url | quote }}
    {{- else }}
    service:
      name: {{ include "weir.webhook" $root }}
      namespace: {{ $root.Release.Namespace }}
      path: /inject
      port: 443
    {{- end }}
    {{- with $webhook.caBundle }}
    caBundle: {{ . }}
    {{- end }}
  rules:
    - operations: [CREATE]
      apiGroups: [""]
      apiVersions: [v1]
      resources: [pods]
      scope: Namespaced
  # Who opted in: rather no pod than one outside the mesh that nobody notices. Who did not: rather the pod.
  failurePolicy: {{ if eq $prefix "auto." }}Ignore{{ else }}Fail{{ end }}
  matchPolicy: Equivalent
  reinvocationPolicy: IfNeeded
  sideEffects: None
  timeoutSeconds: 5
  {{- if $webhook.matchConditions }}
  matchConditions:
    - name: no-mirror-pods
      expression: "!has(object.metadata.annotations) || !('kubernetes.io/config.mirror' in object.metadata.annotations)"
    {{- if or (eq $prefix "auto.") $webhook.skipHostNetwork }}
    - name: no-host-network
      expression: "!has(object.spec.hostNetwork) || !object.spec.hostNetwork"
    {{- end }}
  {{- end }}
  namespaceSelector:
    matchExpressions:
      {{- if eq $prefix "rev.namespace." }}
      - key: istio.io/rev
        operator: In
        values: [{{ $name | quote }}]
      - key: istio-injection
        operator: DoesNotExist
      {{- else if eq $prefix "rev.object." }}
      - key: istio.io/rev
        operator: DoesNotExist
      - key: istio-injection
        operator: DoesNotExist
      {{- else if eq $prefix "namespace." }}
      - key: istio-injection
        operator: In
        values: [enabled]
      {{- else }}
      - key: istio-injection
        operator: DoesNotExist
      - key: istio.io/rev
        operator: DoesNotExist
      {{- end }}
      {{- if $off }}
      - key: weir.dev/deactivated
        operator: In
        values: [never-match]
      {{- end }}
      - key: kubernetes.io/metadata.name
        operator: NotIn
        values:
          {{- range $excluded := include "weir.excludedNamespaces" $root | splitList "\n" }}
          - {{ $excluded }}
          {{- end }}
  objectSelector:
    matchExpressions:
      {{- if eq $prefix "object." }}
      - key: sidecar.istio.io/inject
        operator: In
        values: ["true"]
      - key: istio.io/rev
        operator: DoesNotExist
      {{- else if eq $prefix "auto." }}
      - key: sidecar.istio.io/inject
        operator: DoesNotExist
      - key: istio.io/rev
        operator: DoesNotExist
      {{- else }}
      - key: sidecar.istio.io/inject
        operator: NotIn
        values: ["false"]
      {{- end }}
      {{- if eq $prefix "rev.object." }}
      - key: istio.io/rev
        operator: In
        values: [{{ $name | quote }}]
      {{- end }}
      {{- if $off }}
      - key: weir.dev/deactivated
        operator: In
        values: [never-match]
      {{- end }}
{{- end }}
{{- end -}}

{{- /* Where the nodes have their folders, and what the agent does: variables of its environment, as YAML. */ -}}
{{- define "weir.nodeSettings" -}}
{{- $node := .Values.node }}
{{- $platform := include "weir.platform" . | fromYaml -}}
CNI_NET_DIR: {{ $platform.netDir | quote }}
CNI_BIN_DIR: {{ $platform.binDir | quote }}
{{- with $platform.name }}
WEIR_PLATFORM: {{ . | quote }}
{{- end }}
{{- if $platform.multus }}
CHAINED_CNI_PLUGIN: "false"
{{- end }}
{{- if not $node.uninstall }}
{{- if ne $node.mode "cni" }}
WEIR_MODE: {{ $node.mode | quote }}
{{- end }}
REPAIR_ENABLED: {{ ternary "true" "false" $node.repair | quote }}
{{- if $node.deletePods }}
REPAIR_DELETE_PODS: "true"
{{- end }}
{{- if $node.labelPods }}
REPAIR_LABEL_PODS: "true"
{{- end }}
{{- if $node.taint }}
TAINT_ENABLED: "true"
{{- end }}
{{- end }}
{{- end -}}

{{- /* Folders of the node that the agent and the uninstaller have in common. Given: the row of the platform. */ -}}
{{- define "weir.nodeVolumes" -}}
- name: cni-net-dir
  hostPath:
    path: {{ .netDir }}
    type: DirectoryOrCreate
- name: cni-bin-dir
  hostPath:
    path: {{ .binDir }}
    type: {{ .binDirType }}
- name: runtime-config
  {{- if .runtimeConfigDir }}
  hostPath:
    path: {{ .runtimeConfigDir }}
    type: DirectoryOrCreate
  {{- else }}
  emptyDir: {}
  {{- end }}
- name: run-dir
  hostPath:
    path: /var/run/weir
    type: DirectoryOrCreate
{{- end -}}

{{- define "weir.nodeMounts" -}}
- name: cni-net-dir
  mountPath: /host/cni/net.d
- name: cni-bin-dir
  mountPath: /host/cni/bin
- name: runtime-config
  mountPath: /host/etc/containerd
  readOnly: true
- name: run-dir
  mountPath: /var/run/weir
{{- end -}}

{{- /* A right of the agent that a feature brings along. Given: root, feature, resource, verbs. */ -}}
{{- define "weir.nodeFeature" }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata:
  name: weir-agent-{{ .feature }}
  labels:
    {{- include "weir.nodeLabels" .root | nindent 4 }}
rules:
  - apiGroups: [""]
    resources: [{{ .resource }}]
    verbs: {{ .verbs | toJson }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  name: weir-agent-{{ .feature }}
  labels:
    {{- include "weir.nodeLabels" .root | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: ClusterRole
  name: weir-agent-{{ .feature }}
subjects:
  - kind: ServiceAccount
    name: {{ include "weir.nodeAccount" .root }}
    namespace: weir-node
{{- end -}}
