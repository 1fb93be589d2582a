// Command gotemplate renders templates as Istio's injector does: with Go's text/template, sprig, and the injector's functions, which are
// restated here. It reads one JSON request per line and writes one JSON response per line. The tests of weir-injector compare its engine
// with this one.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"
	"text/template"
	"time"

	"github.com/Masterminds/sprig/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	meshconfig "istio.io/api/mesh/v1alpha1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// A request has a template and either untyped data or the number of a context that an earlier request has stored.
type request struct {
	Template string            `json:"template"`
	Data     map[string]any    `json:"data"`
	Store    *requestContext   `json:"store"`
	Context  *int              `json:"context"`
	Env      map[string]string `json:"env"`
	// Whether the release is before 1.22, when a proxy traced to Zipkin by default and networks had no namespace in JSON.
	Before122 bool `json:"before1_22"`
}

// Contexts that requests have stored, by number from 0.
var contexts []*sidecarTemplateData

// The typed context of Istio's injector.
type requestContext struct {
	TypeMeta                 metav1.TypeMeta   `json:"typeMeta"`
	DeploymentMeta           metav1.ObjectMeta `json:"deploymentMeta"`
	ObjectMeta               metav1.ObjectMeta `json:"metadata"`
	Spec                     corev1.PodSpec    `json:"spec"`
	ProxyConfig              json.RawMessage   `json:"proxyConfig"`
	MeshConfig               json.RawMessage   `json:"meshConfig"`
	Values                   map[string]any    `json:"values"`
	Revision                 string            `json:"revision"`
	ProxyImage               string            `json:"proxyImage"`
	ProxyInitImage           string            `json:"proxyInitImage"`
	ProxyUID                 int64             `json:"proxyUID"`
	ProxyGID                 int64             `json:"proxyGID"`
	NativeSidecars           bool              `json:"nativeSidecars"`
	InboundTrafficPolicyMode string            `json:"inboundTrafficPolicyMode"`
	CompliancePolicy         string            `json:"compliancePolicy"`
	EstimatedConcurrency     int               `json:"estimatedConcurrency"`
}

// The fields of SidecarTemplateData in pkg/kube/inject of all releases.
type sidecarTemplateData struct {
	TypeMeta                 *metav1.TypeMeta
	DeploymentMeta           *metav1.ObjectMeta
	ObjectMeta               metav1.ObjectMeta
	Spec                     corev1.PodSpec
	ProxyConfig              *meshconfig.ProxyConfig
	MeshConfig               *meshconfig.MeshConfig
	Values                   map[string]any
	Revision                 string
	ProxyImage               string
	ProxyInitImage           string
	ProxyUID                 int64
	ProxyGID                 int64
	NativeSidecars           bool
	InboundTrafficPolicyMode string
	CompliancePolicy         string
	EstimatedConcurrency     int
}

func (c *requestContext) data() (*sidecarTemplateData, error) {
	lenient := protojson.UnmarshalOptions{DiscardUnknown: true}
	proxyConfig, meshConfig := &meshconfig.ProxyConfig{}, &meshconfig.MeshConfig{}
	if err := lenient.Unmarshal(c.ProxyConfig, proxyConfig); err != nil {
		return nil, err
	}
	if err := lenient.Unmarshal(c.MeshConfig, meshConfig); err != nil {
		return nil, err
	}
	return &sidecarTemplateData{
		TypeMeta: &c.TypeMeta, DeploymentMeta: &c.DeploymentMeta, ObjectMeta: c.ObjectMeta, Spec: c.Spec,
		ProxyConfig: proxyConfig, MeshConfig: meshConfig, Values: c.Values, Revision: c.Revision,
		ProxyImage: c.ProxyImage, ProxyInitImage: c.ProxyInitImage, ProxyUID: c.ProxyUID, ProxyGID: c.ProxyGID,
		NativeSidecars: c.NativeSidecars, InboundTrafficPolicyMode: c.InboundTrafficPolicyMode,
		CompliancePolicy: c.CompliancePolicy, EstimatedConcurrency: c.EstimatedConcurrency,
	}, nil
}

type response struct {
	Text  string `json:"text,omitempty"`
	Error string `json:"error,omitempty"`
}

func main() {
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(make([]byte, 0, 1<<20), 64<<20)
	out := bufio.NewWriter(os.Stdout)
	encode := json.NewEncoder(out)
	for in.Scan() {
		var r request
		var a response
		if err := json.Unmarshal(in.Bytes(), &r); err != nil {
			a.Error = "request: " + err.Error()
		} else if text, err := render(r); err != nil {
			a.Error = err.Error()
		} else {
			a.Text = text
		}
		if err := encode.Encode(a); err != nil {
			panic(err)
		}
		if err := out.Flush(); err != nil {
			panic(err)
		}
	}
}

func render(r request) (text string, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	if r.Store != nil {
		stored, err := r.Store.data()
		contexts = append(contexts, stored)
		return "", err
	}
	funcs := sprig.TxtFuncMap()
	for name, f := range injectorFunctions(r) {
		funcs[name] = f
	}
	parsed, err := template.New("t").Funcs(funcs).Parse(r.Template)
	if err != nil {
		return "", err
	}
	var data any = r.Data
	if r.Context != nil {
		data = contexts[*r.Context]
	}
	var out bytes.Buffer
	err = parsed.Execute(&out, data)
	return out.String(), err
}

// The functions of Istio's injector that depend on their arguments alone (pkg/kube/inject: template.go, inject.go).
func injectorFunctions(r request) template.FuncMap {
	return template.FuncMap{
		"structToJSON":   func(v any) string { return toJSON(v) },
		"protoToJSON":    func(m proto.Message) string { return protoToJSON(m, r.Before122) },
		"formatDuration": func(d *durationpb.Duration) string { return d.AsDuration().String() },
		"contains":       func(needle, text string) bool { return strings.Contains(text, needle) },
		"toLower":        strings.ToLower,
		// Empty without a provider that asks for attributes; the tests have none.
		"otelResourceAttributes": func(*meshconfig.MeshConfig, map[string]string, map[string]string, string, []corev1.Container) string {
			return ""
		},
		"toJSON": func(m map[string]string) string {
			if m == nil {
				return "{}"
			}
			return toJSON(m)
		},
		"fromJSON": func(s string) any {
			var m any
			if json.Unmarshal([]byte(s), &m) != nil {
				return "{}"
			}
			return m
		},
		"toJsonMap":  func(m ...map[string]string) string { return toJSON(merge(m)) },
		"mergeMaps":  func(m ...map[string]string) map[string]string { return merge(m) },
		"strdict":    strdict,
		"omit":       omit,
		"omitNil":    omitNil,
		"toYaml":     func(v any) string { b, _ := yaml.Marshal(v); return string(b) },
		"indent":     func(n int, s string) string { return strings.ReplaceAll(s, "\n", "\n"+strings.Repeat(" ", n)) },
		"annotation": annotation,
		"isset":      func(m map[string]string, k string) bool { _, ok := m[k]; return ok },
		"valueOrDefault": func(v, d any) any {
			if v == nil || v == "" {
				return d
			}
			return v
		},
		"directory": func(p string) string { d, _ := path.Split(p); return d },
		"env": func(key, fallback string) string {
			if v, ok := r.Env[key]; ok {
				return v
			}
			return fallback
		},
		"applicationPorts": func(c []corev1.Container) string {
			return ports(c, func(name string) bool { return name != "istio-proxy" })
		},
		"includeInboundPorts": func(c []corev1.Container) string { return ports(c, func(string) bool { return true }) },
		"kubevirtInterfaces":  func(s string) string { return s },
		"excludeInterfaces":   func(s string) string { return s },
		"excludeInboundPort":  excludeInboundPort,
		"appendMultusNetwork": func(existing, network string) string { return appendMultusNetwork(existing, network, r.Before122) },
	}
}

func toJSON(v any) string {
	if v == nil {
		return "{}"
	}
	b, err := json.Marshal(v)
	if err != nil {
		return "{}"
	}
	return string(b)
}

// protoToJSON leaves out fields of a ProxyConfig that have their default, as cleanProxyConfig in pkg/kube/inject/template.go does.
func protoToJSON(m proto.Message, before122 bool) string {
	if c, ok := m.(*meshconfig.ProxyConfig); ok && c != nil {
		c = proto.Clone(c).(*meshconfig.ProxyConfig)
		d := defaultProxyConfig()
		zeroIf(&c.ConfigPath, d.ConfigPath)
		zeroIf(&c.BinaryPath, d.BinaryPath)
		zeroIf(&c.ControlPlaneAuthPolicy, d.ControlPlaneAuthPolicy)
		if x, ok := c.ClusterName.(*meshconfig.ProxyConfig_ServiceCluster); ok && x.ServiceCluster == d.GetServiceCluster() {
			c.ClusterName = nil
		}
		if proto.Equal(c.DrainDuration, d.DrainDuration) {
			c.DrainDuration = nil
		}
		if proto.Equal(c.TerminationDrainDuration, d.TerminationDrainDuration) {
			c.TerminationDrainDuration = nil
		}
		zeroIf(&c.DiscoveryAddress, d.DiscoveryAddress)
		zeroIf(&c.ProxyAdminPort, d.ProxyAdminPort)
		zeroIf(&c.StatNameLength, d.StatNameLength)
		zeroIf(&c.StatusPort, d.StatusPort)
		zipkin := &meshconfig.Tracing{Tracer: &meshconfig.Tracing_Zipkin_{Zipkin: &meshconfig.Tracing_Zipkin{Address: "zipkin.istio-system:9411"}}}
		if before122 && proto.Equal(c.Tracing, zipkin) {
			c.Tracing = nil
		}
		m = c
	}
	b, err := protojson.Marshal(m)
	if err != nil {
		return "{}"
	}
	// protojson adds spaces at random.
	var out bytes.Buffer
	if json.Compact(&out, b) != nil {
		return "{}"
	}
	return out.String()
}

// defaultProxyConfig is mesh.DefaultProxyConfig of pkg/config/mesh.
func defaultProxyConfig() *meshconfig.ProxyConfig {
	return &meshconfig.ProxyConfig{
		ConfigPath:               "./etc/istio/proxy",
		BinaryPath:               "/usr/local/bin/envoy",
		ClusterName:              &meshconfig.ProxyConfig_ServiceCluster{ServiceCluster: "istio-proxy"},
		DrainDuration:            durationpb.New(45 * time.Second),
		TerminationDrainDuration: durationpb.New(5 * time.Second),
		ProxyAdminPort:           15000,
		ControlPlaneAuthPolicy:   meshconfig.AuthenticationPolicy_MUTUAL_TLS,
		DiscoveryAddress:         "istiod.istio-system.svc:15012",
		StatNameLength:           189,
		StatusPort:               15020,
	}
}

func zeroIf[T comparable](field *T, value T) {
	if *field == value {
		var zero T
		*field = zero
	}
}

func merge(maps []map[string]string) map[string]string {
	all := map[string]string{}
	for _, m := range maps {
		for k, v := range m {
			all[k] = v
		}
	}
	return all
}

func strdict(pairs ...string) map[string]string {
	m := map[string]string{}
	for i := 0; i < len(pairs); i += 2 {
		if i+1 < len(pairs) {
			m[pairs[i]] = pairs[i+1]
		} else {
			m[pairs[i]] = ""
		}
	}
	return m
}

func omit(m map[string]string, keys ...string) map[string]string {
	kept := map[string]string{}
	for k, v := range m {
		kept[k] = v
	}
	for _, k := range keys {
		delete(kept, k)
	}
	return kept
}

// Removes nil values, and maps and lists that become empty by that.
func omitNil(v any) any {
	switch v := v.(type) {
	case map[string]any:
		kept := map[string]any{}
		for k, e := range v {
			if e = omitNil(e); e != nil {
				kept[k] = e
			}
		}
		if len(kept) == 0 {
			return nil
		}
		return kept
	case []any:
		var kept []any
		for _, e := range v {
			if e = omitNil(e); e != nil {
				kept = append(kept, e)
			}
		}
		if len(kept) == 0 {
			return nil
		}
		return kept
	default:
		return v
	}
}

func annotation(meta metav1.ObjectMeta, name string, fallback any) string {
	if v, ok := meta.Annotations[name]; ok {
		return v
	}
	return fmt.Sprint(fallback)
}

func ports(containers []corev1.Container, wanted func(string) bool) string {
	var all []string
	for _, c := range containers {
		for _, p := range c.Ports {
			if wanted(c.Name) && (p.Protocol == "" || p.Protocol == corev1.ProtocolTCP) {
				all = append(all, strconv.Itoa(int(p.ContainerPort)))
			}
		}
	}
	return strings.Join(all, ",")
}

func excludeInboundPort(port any, list string) string {
	p := strings.TrimSpace(fmt.Sprint(port))
	if p == "" || p == "0" {
		return list
	}
	var all []string
	for _, e := range strings.Split(list, ",") {
		if e = strings.TrimSpace(e); e == p {
			return list
		} else if e != "" {
			all = append(all, e)
		}
	}
	return strings.Join(append(all, p), ",")
}

func appendMultusNetwork(existing, network string, before122 bool) string {
	if strings.TrimSpace(existing) == "" {
		return network
	}
	namespace, name := "", network
	if i := strings.Index(network, "/"); i >= 0 && !before122 {
		namespace, name = network[:i], network[i+1:]
	}
	end := strings.LastIndex(existing, "]")
	if end < 0 {
		for _, e := range strings.Split(existing, ",") {
			if strings.TrimSpace(e) == network {
				return existing
			}
		}
		return existing + ", " + network
	}
	var list []map[string]any
	if json.Unmarshal([]byte(existing), &list) != nil {
		return existing
	}
	for _, e := range list {
		if other, _ := e["namespace"].(string); e["name"] == name && other == namespace {
			return existing
		}
	}
	entry := fmt.Sprintf(`{"name": "%s"}`, name)
	if namespace != "" {
		entry = fmt.Sprintf(`{"name": "%s", "namespace": "%s"}`, name, namespace)
	}
	if len(list) > 0 {
		entry = ", " + entry
	}
	return existing[:end] + entry + existing[end:]
}
