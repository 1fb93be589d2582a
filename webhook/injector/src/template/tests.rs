use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::settings::{Documents, Settings};
use crate::{InjectError, InjectOutcome, InjectRequest, inject};

/// Renders a template.
pub(super) fn render(template: &str, data: &Value) -> Result<String, RenderError> {
    let template = CustomTemplate::parse("t", template).unwrap_or_else(|errors| panic!("{template}: {errors:?}"));
    template.render_text(&data::untyped(data), RenderOptions::default())
}

fn sample_data() -> Value {
    json!({"Values": {
        "text": "a b", "empty": "", "number": 15020, "large": 1_000_620_000, "flag": true, "list": ["x", "y"],
        "map": {"b": 2, "a": {"deep": null, "x": []}}, "lines": "one\ntwo\n",
    }})
}

fn parse_errors(template: &str) -> Vec<String> {
    CustomTemplate::parse("t", template).err().unwrap_or_else(|| panic!("valid: {template}"))
}

#[test]
fn functions_match_those_of_go_sprig_and_istio() {
    for (template, want) in [
        // Go.
        ("{{ printf `%s=%t %d %q` .Values.text .Values.flag 7 `x` }}", r#"a b=true 7 "x""#),
        ("{{ printf `%s` .Values.number }}", "%!s(float64=15020)"),
        ("{{ .Values.number }} {{ .Values.missing }} {{ .Values.missing.deeper }}", "15020 <no value> <no value>"),
        ("{{ range .Values.missing }}x{{ else }}none{{ end }}", "none"),
        ("{{ with .Values.missing }}x{{ else }}none{{ end }}", "none"),
        ("{{ eq .Values.missing `x` }} {{ ne .Values.text `x` }} {{ ge 2 1 }}", "false true true"),
        ("{{ len .Values.list }}{{ index .Values.list 1 }}{{ index .Values.map `b` }}", "2y2"),
        ("{{ slice .Values.text 2 }}{{ slice .Values.list 0 1 }}", "b[x]"),
        ("{{ $x := 1 }}{{ if .Values.flag }}{{ $x = 2 }}{{ end }}{{ $x }}", "2"),
        ("{{ range $k, $v := .Values.map }}{{ $k }},{{ end }}", "a,b,"),
        ("{{ define `d` }}<{{ . }}>{{ end }}{{ template `d` .Values.text }}", "<a b>"),
        ("{{- /* nothing */ -}} {{ html `<` }}{{ print 1 2 `x` }}", "&lt;1 2x"),
        // sprig: texts.
        ("{{ quote .Values.text nil 1 }} {{ squote `x` }}", r#""a b" "1" 'x'"#),
        ("{{ .Values.text | trunc 1 }}{{ trunc -1 .Values.text }}{{ trunc 9 `é` }}{{ trunc 1 `é` }}|", "abé|"),
        ("{{ trimAll `ab` `abxba` }}{{ trimPrefix `a` `ab` }}{{ trimSuffix `b` `ab` }}{{ trim ` y ` }}", "xbay"),
        ("{{ contains `b` `abc` }}{{ hasPrefix `a` `abc` }}{{ hasSuffix `a` `abc` }}", "truetruefalse"),
        ("{{ join `-` .Values.list }} {{ splitList `,` `a,b` | last }} {{ (split `,` `a,b`)._1 }}", "x-y b b"),
        ("{{ nindent 2 .Values.lines }}|", "\n  one\n  two\n  |"),
        (
            "{{ upper `a` }}{{ lower `A` }}{{ title `ab cd` }}{{ snakecase `FirstName` }}{{ kebabcase `FirstName` }}",
            "AaAb Cdfirst_namefirst-name",
        ),
        ("{{ replace `a` `b` `aa` }}{{ repeat 3 `x` }}{{ substr 1 3 `abcd` }}{{ abbrev 5 `abcdefg` }}", "bbxxxbcab..."),
        ("{{ b64enc `a` }}{{ b64dec `YQ==` }}{{ base `/a/b` }}{{ dir `/a/b` }}{{ ext `a.yaml` }}", "YQ==ab/a.yaml"),
        ("{{ sha256sum `a` }}", "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"),
        // sprig: lists, maps, numbers, defaults.
        (
            "{{ list 1 2 | rest }}{{ append .Values.list `z` }}{{ prepend .Values.list `z` }}{{ concat .Values.list .Values.list | uniq }}",
            "[2][x y z][z x y][x y]",
        ),
        (
            "{{ has `x` .Values.list }}{{ without .Values.list `x` }}{{ compact (list 0 1 ``) }}{{ reverse .Values.list }}",
            "true[y][1][y x]",
        ),
        (
            "{{ dict `a` 1 `b` 2 }}{{ keys .Values.map }}{{ hasKey .Values.map `a` }}{{ get .Values.map `b` }}{{ dig `a` `z` `d` .Values.map }}",
            "map[a:1 b:2][a b]true2d",
        ),
        (
            "{{ until 3 }}{{ untilStep 6 0 -2 }}{{ sortAlpha (list `b` `a`) }}{{ pick .Values.map `b` }}",
            "[0 1 2][6 4 2][a b]map[b:2]",
        ),
        (
            "{{ default `d` .Values.empty }}{{ .Values.missing | default 5 }}{{ coalesce nil `` `c` }}{{ ternary `y` `n` true }}{{ empty `` }}",
            "d5cytrue",
        ),
        (
            "{{ add 1 2 3 }} {{ sub 5 2 }} {{ mul 2 3 }} {{ div 7 2 }} {{ mod 7 2 }} {{ max 1 5 2 }} {{ add1 .Values.number }}",
            "6 3 6 3 1 5 15021",
        ),
        (
            "{{ int .Values.large }} {{ int `12` }} {{ float64 `1.5` }} {{ kindOf .Values.list }} {{ atoi `x` }}",
            "1000620000 12 1.5 slice 0",
        ),
        (
            "{{ toJson .Values.map }}{{ (fromJson `{\"a\":1}`).a }}{{ (fromYaml `a: [1]`).a }}",
            r#"{"a":{"deep":null,"x":[]},"b":2}1[1]"#,
        ),
        // Istio.
        ("{{ toYaml .Values.map }}|", "a:\n  deep: null\n  x: []\nb: 2\n|"),
        ("{{ toYaml (dict `a` `x` `b` (list 1)) | indent 2 }}|", "a: x\n  b:\n  - 1\n  |"),
        ("{{ toYaml (omitNil .Values.map) }}", "b: 2\n"),
        (
            "{{ valueOrDefault .Values.empty `d` }}{{ valueOrDefault .Values.missing `d` }}{{ valueOrDefault `v` `d` }}",
            "ddv",
        ),
        (
            "{{ excludeInboundPort 15020 `80, 90` }} {{ excludeInboundPort .Values.number `` }} {{ excludeInboundPort 0 `80` }}",
            "80,90,15020 15020 80",
        ),
        ("{{ fromJSON `x` }}{{ fromJSON `[1]` }}{{ directory `/a/b` }}{{ toLower `X` }}", "{}[1]/a/x"),
        (
            "{{ appendMultusNetwork `` `default/istio-cni` }} {{ appendMultusNetwork `a` `default/istio-cni` }}",
            "default/istio-cni a, default/istio-cni",
        ),
        (
            "{{ toJsonMap (strdict `a` `1`) (strdict `b` `2` `a` `3`) }}{{ omit (strdict `a` `1` `b` `2`) `a` }}",
            r#"{"a":"3","b":"2"}map[b:2]"#,
        ),
        (
            "{{ isset .Values.map `a` }}{{ isset .Values.map `z` }}{{ formatDuration `90s` }}{{ env `HOME` `none` }}",
            "truefalse1m30snone",
        ),
    ] {
        assert_eq!(render(template, &sample_data()).as_deref(), Ok(want), "{template}");
    }
}

#[test]
fn parsing_reports_all_errors_with_their_lines() {
    let template = "a: 1\nb: {{ nosuch .Values.x }}\nc: x\nd: {{ $undeclared }}\n{{ template \"x\" . }}\n\
                    e: {{ .ProxyConfig.Lookup \"a\" }}\nf: {{ set (dict) `a` 1 }}{{ $y = 1 }}";
    assert_eq!(
        parse_errors(template),
        [
            "line 2: function \"nosuch\" not defined",
            "line 4: undefined variable $undeclared",
            "line 6: cannot pass arguments to .ProxyConfig.Lookup: methods with arguments are not supported",
            "line 7: function \"set\" not defined",
            "line 7: undefined variable $y in assignment",
        ]
    );
    assert_eq!(parse_errors("a: 1\n{{ if }}x{{ end }}").len(), 1);
    assert!(
        parse_errors("a\n{{ .X").first().is_some_and(|error| error.starts_with("line 2: ")),
        "{:?}",
        parse_errors("a\n{{ .X")
    );
    assert!(parse_errors(&"x".repeat(2_000_000))[0].contains("the limit is"));
}

#[test]
fn fields_that_do_not_exist_fail_where_they_are_used() {
    let template = "{{ if .Revision }}{{ .Vales.x }}{{ .ProxyConfig.GetTracing.GetTlsSettingt }}{{ .ProxyConfig.Concurrency.GetValuf }}\n{{ .ObjectMeta.Nmae }}{{ range .Spec.Containers }}{{ .Nmae }}{{ end }}{{ end }}x";
    let template = CustomTemplate::parse("t", template).unwrap();
    assert_eq!(
        template.warnings(),
        [
            "line 1: the template data has no field \"Vales\"",
            "line 1: .ProxyConfig.Tracing has no field \"TlsSettingt\"",
            "line 1: .ProxyConfig.Concurrency has no field \"Valuf\"",
            "line 2: .ObjectMeta has no field \"Nmae\"",
        ]
    );
    let data = |revision: &str| {
        let spec = data::pod_spec(Some(&json!({"containers": [{"name": "a"}]})));
        Data::Map(std::sync::Arc::new([("Revision".into(), value::text(revision)), ("Spec".into(), spec)].into()))
    };
    let render = |data: &Data| template.render_text(data, RenderOptions::default());
    assert_eq!(render(&data("")).as_deref(), Ok("x"));
    let error = render(&data("r")).unwrap_err().to_string();
    assert!(error.ends_with("the template data has no field \"Vales\""), "{error}");
    let dynamic = CustomTemplate::parse("t", "{{ range .Spec.Containers }}{{ .Nmae }}{{ end }}").unwrap();
    let error = dynamic.render_text(&data(""), RenderOptions::default()).unwrap_err().to_string();
    assert!(error.ends_with("the object has no field \"Nmae\""), "{error}");
}

#[test]
fn render_errors_have_the_line() {
    for (template, line, reason) in [
        ("a\n{{ index .Values.missing 0 }}", 2, "index of untyped nil"),
        ("{{ if true }}\n{{ fail `no, thanks` }}{{ end }}", 2, "no, thanks"),
        ("\n\n{{ upper .Values.number }}", 3, "upper: argument 1 must be a string, found float64"),
        ("{{ trim }}", 1, "trim: wrong number of arguments: expected 1, found 0"),
        ("{{ eq .Values.flag `true` }}", 1, "incompatible types for comparison: bool and string"),
    ] {
        let error = render(template, &sample_data()).unwrap_err();
        assert_eq!((error.line, error.reason.as_str()), (line, reason), "{template}");
    }
}

#[test]
fn every_rendering_is_limited() {
    for (template, reason) in [
        ("{{ range until 60000 }}{{ range until 60000 }}x{{ end }}{{ end }}", "iterations"),
        ("{{ range until 1000 }}{{ range until 1000 }}{{ end }}{{ end }}", "iterations"),
        ("{{ range 1000000000 }}{{ end }}", "iterations"),
        ("{{ define `a` }}{{ template `a` . }}{{ end }}{{ template `a` . }}", "too deeply"),
        (
            "{{ define `a` }}{{ if . }}{{ template `a` (sub . 1) }}{{ template `a` (sub . 1) }}{{ end }}{{ end }}{{ template `a` 60 }}",
            "actions",
        ),
        ("{{ $x := `0123456789` }}{{ range until 60 }}{{ $x = print $x $x }}{{ end }}", "a value exceeds"),
        ("{{ $x := list 1 }}{{ range until 60 }}{{ $x = list $x $x }}{{ end }}{{ $x }}", "a value exceeds"),
        ("{{ $x := list 1 }}{{ range until 100 }}{{ $x = list $x }}{{ end }}", "levels of nesting"),
        ("{{ repeat 1000000000 `x` }}", "a value exceeds"),
        ("{{ range until 100 }}{{ repeat 100000 `x` }}{{ end }}", "output exceeds"),
        ("{{ printf `%1000000000d` 1 | printf `%s%s%[1]s%s%s%s%s%s%s%s%s%s%s%s%s%s%s%s%s` }}", "a value exceeds"),
        ("{{ $x := repeat 900000 `x` }}{{ range until 5000 }}{{ $y := upper $x }}{{ end }}", "too much data"),
        ("{{ indent 1000000 `a\nb\nc` }}{{ nindent 1000000 `a\nb\nc` }}", "a value exceeds"),
        ("{{ until 100000000 }}", "a value exceeds"),
    ] {
        let error = render(template, &sample_data()).unwrap_err();
        assert!(error.reason.contains(reason), "{template}: {}", error.reason);
    }
    // Deeper than the parser goes.
    let nested = format!("{{{{ {}1{} }}}}", "(".repeat(5000), ")".repeat(5000));
    assert!(!parse_errors(&nested).is_empty());
}

fn settings(values: &Value, templates: &Value) -> Settings {
    let config = json!({"templates": templates, "defaultTemplates": ["t"]});
    let mesh = json!({"defaultConfig": {"proxyMetadata": {"KEY": "v"}, "tracing": {"zipkin": {"address": "z:1"}}, "concurrency": 3},
        "extensionProviders": [{"name": "otel", "opentelemetry": {"serviceAttributeEnrichment": "OTEL_SEMANTIC_CONVENTIONS"}}]});
    let documents = Documents { values: Some(values), mesh: Some(&mesh), config: Some(&config) };
    Settings::from_documents(documents).unwrap_or_else(|errors| panic!("{errors:?}"))
}

fn pod() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web", "namespace": "shop", "labels": {"app": "web"}, "annotations": {"a": "1"}},
        "spec": {"serviceAccountName": "sa", "containers": [{
            "name": "app", "image": "r/app:1.0", "ports": [{"containerPort": 80, "name": "http"}, {"containerPort": 53, "protocol": "UDP"}],
            "readinessProbe": {"httpGet": {"path": "/", "port": 80}}, "resources": {"limits": {"cpu": 2}},
            "securityContext": {"runAsUser": 0},
        }]},
    })
}

/// Renders an expression for a pod, through an annotation that a template sets.
fn render_for_pod(expression: &str) -> String {
    let template = format!("metadata:\n  annotations:\n    shown: |\n      {}", expression.replace('\n', "\n      "));
    let settings =
        settings(&json!({"global": {"hub": "h", "tag": "t"}, "revision": "canary"}), &json!({"t": template}));
    match inject(&InjectRequest { pod: pod(), ..InjectRequest::default() }, &settings) {
        Ok(InjectOutcome::Injected { pod, .. }) => {
            pod["metadata"]["annotations"]["shown"].as_str().unwrap_or("nothing").trim_end().to_owned()
        }
        Ok(InjectOutcome::Skipped { .. }) => "skipped".to_owned(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn template_data_has_go_names_and_zero_values() {
    for (expression, want) in [
        (
            "{{ .TypeMeta.APIVersion }}/{{ .TypeMeta.Kind }}/{{ .DeploymentMeta.Name }}/{{ .DeploymentMeta.Namespace }}",
            "v1/Pod/web/shop",
        ),
        (
            "{{ .ObjectMeta.Name }}{{ .ObjectMeta.GenerateName }}|{{ .ObjectMeta.Labels.app }}|{{ .ObjectMeta.GetNamespace }}",
            "web|web|shop",
        ),
        ("[{{ index .ObjectMeta.Labels `none` }}]{{ eq (index .ObjectMeta.Annotations `a`) `1` }}", "[]true"),
        (
            "{{ annotation .ObjectMeta `a` `d` }}{{ annotation .ObjectMeta `b` 5 }}{{ annotation .ObjectMeta `b` nil }}",
            "15<nil>",
        ),
        ("{{ isset .ObjectMeta.Annotations `a` }}", "true"),
        (
            "{{ .Spec.ServiceAccountName }}{{ .Spec.HostNetwork }}[{{ .Spec.Hostname }}]{{ len .Spec.InitContainers }}",
            "safalse[]0",
        ),
        (
            "{{ range .Spec.Containers }}{{ .Name }} {{ .Image }} {{ range .Ports }}{{ .ContainerPort }}{{ .Protocol }} {{ end }}{{ end }}",
            "app r/app:1.0 80 53UDP",
        ),
        (
            "{{ with index .Spec.Containers 0 }}{{ .ReadinessProbe.HTTPGet.Path }}{{ .Stdin }}{{ .SecurityContext.RunAsUser }}{{ end }}",
            "/false0",
        ),
        ("{{ structToJSON (index (index .Spec.Containers 0).Ports 0) }}", r#"{"name":"http","containerPort":80}"#),
        (
            "{{ toJson (index .Spec.Containers 0).SecurityContext }}{{ toJson (index .Spec.Containers 0).Resources.Limits }}",
            r#"{"runAsUser":0}{"cpu":2}"#,
        ),
        ("{{ applicationPorts .Spec.Containers }};{{ includeInboundPorts .Spec.Containers }}", "80;80"),
        (
            "{{ protoToJSON .ProxyConfig }}",
            r#"{"concurrency":3,"tracing":{"zipkin":{"address":"z:1"}},"proxyMetadata":{"KEY":"v"}}"#,
        ),
        (
            "{{ .ProxyConfig.InterceptionMode }} {{ .ProxyConfig.InterceptionMode.String }} {{ $.ProxyConfig.GetInterceptionMode.String }}",
            "REDIRECT REDIRECT REDIRECT",
        ),
        (
            "{{ .ProxyConfig.HoldApplicationUntilProxyStarts.GetValue | not }}{{ .ProxyConfig.Concurrency.GetValue }}",
            "true3",
        ),
        (
            "{{ .ProxyConfig.GetTracing.GetTlsSettings.GetCaCertificates | empty }}{{ .ProxyConfig.Tracing.Zipkin.Address }}",
            "truez:1",
        ),
        (
            "{{ range $k, $v := .ProxyConfig.ProxyMetadata }}{{ $k }}={{ $v }}{{ end }}{{ .ProxyConfig.StatusPort }}",
            "KEY=v15020",
        ),
        ("{{ formatDuration .ProxyConfig.DrainDuration }}", "45s"),
        (
            "{{ .MeshConfig.ProxyListenPort }}{{ .MeshConfig.ProxyInboundListenPort }}{{ .MeshConfig.TrustDomain }}",
            "1500115006cluster.local",
        ),
        ("{{ (index .MeshConfig.ExtensionProviders 0).Name }}{{ .MeshConfig.DefaultConfig.StatusPort }}", "otel15020"),
        (
            "{{ otelResourceAttributes .MeshConfig .ObjectMeta.Annotations .ObjectMeta.Labels .DeploymentMeta.Namespace .Spec.Containers }}",
            "service.namespace=shop,service.version=1.0,service.instance.id=shop.$(POD_NAME).app",
        ),
        (
            "{{ .Values.global.hub }}{{ .Values.revision }}{{ .Values.pilot.cni.enabled }}{{ (.Values.pilot.env).X }}",
            "hcanary<no value><no value>",
        ),
        (
            "{{ .Revision }} {{ .NativeSidecars }} {{ .ProxyImage }} {{ .ProxyInitImage }} {{ .ProxyUID }} {{ .ProxyGID }}",
            "canary true h/proxyv2:t h/proxyv2:t 1337 1337",
        ),
        ("{{ .InboundTrafficPolicyMode }}[{{ .CompliancePolicy }}]", "passthrough[]"),
        ("{{ define `r` }}{{ .Values.global.tag }}{{ end }}{{ template `r` . }}", "t"),
    ] {
        assert_eq!(render_for_pod(expression), want, "{expression}");
    }
}

#[test]
fn functions_accept_a_large_pod() {
    let template = "metadata: {labels: {ports: \"{{ applicationPorts .Spec.Containers }}\"}}";
    let settings = settings(&json!({}), &json!({"t": template}));
    let mut large = pod();
    let variable = |number| json!({"name": format!("V{number}"), "value": "x".repeat(200)});
    large["spec"]["containers"][0]["env"] = (0..10_000).map(variable).collect();
    let request = InjectRequest { pod: large, ..InjectRequest::default() };
    let Ok(InjectOutcome::Injected { pod, .. }) = inject(&request, &settings) else { panic!("not injected") };
    assert_eq!(pod["metadata"]["labels"]["ports"], "80");
}

#[test]
fn a_failing_template_denies_the_pod() {
    let inject_with = |template: &str| {
        let settings = settings(&json!({}), &json!({"t": template}));
        inject(&InjectRequest { pod: pod(), ..InjectRequest::default() }, &settings)
    };
    for (template, want) in [
        ("spec:\n  x: {{ fail \"not today\" }}", "template \"t\", line 2: not today"),
        ("spec: [", "template \"t\": output is not YAML: "),
        ("- 1", "template \"t\": output is not an object with `metadata` and `spec`"),
        ("spec: 5", "template \"t\": `spec` of the output is not an object"),
    ] {
        let error = inject_with(template).unwrap_err();
        assert!(matches!(error, InjectError::Template(_)) && error.to_string().starts_with(want), "{error}");
    }
    let error = inject_with("spec:\n  containers:\n  - image: x").unwrap_err().to_string();
    assert!(error.contains("spec.containers") && error.contains("name"), "{error}");
    // Empty output adds nothing.
    assert!(matches!(inject_with("{{- /* nothing */ -}}"), Ok(InjectOutcome::Injected { .. })));
}

#[test]
fn unknown_fields_of_the_output_are_left_out_with_a_warning() {
    let template = "metadata: {labels: {x: y}, odd: 1}\nspec:\n  odd: 1\n  containers:\n  - {name: helper, image: a, imagee: b, $patch: merge}\n";
    let settings = settings(&json!({}), &json!({"t": template}));
    let mut own = pod();
    own["spec"]["newer"] = 1.into();
    let request = InjectRequest { pod: own, ..InjectRequest::default() };
    let Ok(InjectOutcome::Injected { pod, warnings, .. }) = inject(&request, &settings) else { panic!("not injected") };
    assert_eq!((pod["spec"].get("odd"), &pod["spec"]["newer"]), (None, &json!(1)), "fields of the user stay");
    let helper = pod["spec"]["containers"].as_array().unwrap().iter().find(|container| container["name"] == "helper");
    assert_eq!(helper, Some(&json!({"name": "helper", "image": "a"})));
    let warning = "template \"t\": unknown fields are left out: metadata.odd; spec.odd; spec.containers[helper].imagee";
    assert!(warnings.contains(&warning.to_owned()), "{warnings:?}");
}

#[test]
fn templates_and_aliases_are_merged_in_order() {
    let templates = json!({
        "one": "metadata: {labels: {x: one, y: one}}\nspec: {containers: [{name: helper, image: a}]}",
        "two": "metadata: {labels: {x: two}}\nspec: {containers: [{name: helper, env: [{name: E, value: \"{{ len .Spec.Containers }}\"}]}]}",
    });
    let config = json!({"templates": templates, "aliases": {"both": ["one", "two"]}});
    let settings = Settings::from_documents(Documents { config: Some(&config), ..Documents::default() }).unwrap();
    let mut asked = pod();
    asked["metadata"]["annotations"]["inject.istio.io/templates"] = "both".into();
    let request = InjectRequest { pod: asked, ..InjectRequest::default() };
    let Ok(InjectOutcome::Injected { pod: once, templates, .. }) = inject(&request, &settings) else {
        panic!("not injected")
    };
    assert_eq!(templates, ["one", "two"]);
    assert_eq!(once["metadata"]["labels"], json!({"app": "web", "x": "two", "y": "one"}));
    // The second is rendered for the original pod, without what the first added.
    let helper =
        once["spec"]["containers"].as_array().unwrap().iter().find(|container| container["name"] == "helper").unwrap();
    assert_eq!(*helper, json!({"name": "helper", "env": [{"name": "E", "value": "1"}], "image": "a"}));
    let again = InjectRequest { pod: once.clone(), ..InjectRequest::default() };
    let Ok(InjectOutcome::Injected { pod: twice, .. }) = inject(&again, &settings) else { panic!("not injected") };
    assert_eq!(twice, once);
}

#[test]
fn docs_list_all_functions() {
    let page = include_str!("../../../../docs/webhook.md");
    let rows = page.lines().filter(|line| line.starts_with("| of "));
    let named = rows.flat_map(|row| row.split('`').skip(1).step_by(2));
    let named: std::collections::BTreeSet<&str> = named.collect();
    let functions = functions::all();
    let unknown: Vec<&&str> = named.iter().filter(|name| !functions::is_defined(&functions, name)).collect();
    assert!(unknown.is_empty(), "not defined: {unknown:?}");
    let silent = functions.keys().filter(|name| !name.starts_with('\0') && !named.contains(name.as_str()));
    assert_eq!(silent.collect::<Vec<_>>(), Vec::<&String>::new(), "not in the docs");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_terminates(parts in prop::collection::vec(
        prop_oneof![
            Just("{{"), Just("}}"), Just("{{-"), Just("-}}"), Just("if "), Just("range "), Just("with "), Just("end"), Just("else"),
            Just("define `a`"), Just("template `a` ."), Just("$x := "), Just("$x"), Just("."), Just(".Values"), Just(".text"), Just(".list"),
            Just(" | "), Just("("), Just(")"), Just("printf `%s%*d`"), Just(" 9"), Just("-1"), Just("`b`"), Just("toYaml"), Just("repeat"),
            Just("index"), Just("join"), Just("list"), Just("dict"), Just("until"), Just("trunc"), Just("substr"), Just("indent"), Just(" "),
            Just("\n"), Just("a: b"), Just("é"), Just("\0"), Just("break"), Just("continue"), Just("/*"), Just("*/"),
        ], 0..40)) {
        if let Ok(template) = CustomTemplate::parse("t", &parts.concat()) {
            let _ = template.render(&data::untyped(&sample_data()), RenderOptions::default(), &mut Vec::new());
        }
    }
}
