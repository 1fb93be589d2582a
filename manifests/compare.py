#!/usr/bin/env python3
"""Holds what different tools make of the manifests against each other, object by object.

    compare.py MANIFESTS              Helm's rendering of the chart against `kubectl kustomize`, for each pair of equal.yaml
    compare.py MANIFESTS --weir FILE  `weir manifest generate` against Helm's rendering, for the same settings and more

MANIFESTS is a copy of this folder with placeholders for certificates (validate.sh makes one). Run by the Python of the environment that
validate.sh makes, which has helm-python-sdk. Says all that differs, and ends with 1 where anything does.
"""

import itertools
import json
import os
import subprocess
import sys
import tempfile

import helm_python
import yaml

NAMESPACE = "weir-system"
ORDERLESS = ("volumes", "volumeMounts")
NOTHING = [(name, []) for name in ORDERLESS]


def merged(base, over):
    """`over` laid over `base`, maps key by key."""
    if not isinstance(base, dict) or not isinstance(over, dict):
        return over
    return {key: merged(base.get(key), over[key]) if key in over else base[key] for key in base.keys() | over.keys()}


def objects(text):
    return [document for document in yaml.safe_load_all(text) if document]


def helm(chart, values):
    rendered = chart.render(values, name="weir", namespace=NAMESPACE)
    found = itertools.chain(*(objects(text) for path, text in rendered.items() if path.endswith(".yaml")))
    # Hooks (`helm test`) are no part of an installation.
    return [item for item in found if "helm.sh/hook" not in item["metadata"].get("annotations", {})]


def kustomize(root, pair):
    folder = pair.get("overlay")
    if folder is None or "components" in pair:
        resources = [folder] if folder else pair.get("resources", ["base"])
        components = pair["components"] if folder or "resources" in pair else ["image", "components/admission-policies"] + pair["components"]
        folder = tempfile.mkdtemp(dir=os.path.join(root, "overlays"))
        up = lambda paths: [os.path.relpath(os.path.join(root, path), folder) for path in paths]
        with open(os.path.join(folder, "kustomization.yaml"), "w") as file:
            yaml.safe_dump({"resources": up(resources), "components": up(components)}, file)
    return objects(subprocess.run(["kubectl", "kustomize", os.path.join(root, folder)], check=True, capture_output=True, text=True).stdout)


def plain(value, key=""):
    """Without what says nothing: null, the order of volumes, and who manages an object."""
    if isinstance(value, dict):
        kept = {name: plain(inner, name) for name, inner in value.items() if name != "app.kubernetes.io/managed-by"}
        return {name: inner for name, inner in kept.items() if inner is not None and (name, inner) not in NOTHING}
    if isinstance(value, list):
        items = [plain(item) for item in value]
        return sorted(items, key=lambda item: item["name"]) if key in ORDERLESS and all(isinstance(item, dict) for item in items) else items
    return value


def normal(found):
    """Objects by kind, namespace and name, in a form in which equal ones are equal."""
    out = {}
    for item in found:
        # Made by the administrator where the chart is used.
        if item["kind"] == "Secret":
            continue
        text = json.dumps(item)
        for name in {other["metadata"]["name"] for other in found if other["kind"] == "ConfigMap"}:
            # kustomize puts a hash behind the name, so that agents restart; the chart has an annotation for that.
            if name.startswith("weir-node-"):
                text = text.replace(name, "weir-node")
        item = json.loads(text)
        template = item.get("spec", {}).get("template", {})
        template.get("metadata", {}).get("annotations", {}).pop("weir.dev/settings", None)
        for key in ("values", "mesh", "assertions"):
            if item["kind"] == "ConfigMap" and key in item["data"]:
                item["data"][key] = yaml.safe_load(item["data"][key])
        metadata = item["metadata"]
        identity = f"{item['kind']} {metadata.get('namespace', '')}/{metadata['name']}"
        if identity in out:
            raise SystemExit(f"{identity} is there twice")
        out[identity] = plain(item)
    return out


def differences(one, other, path):
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted(one.keys() | other.keys()):
            yield from differences(one.get(key), other.get(key), f"{path}.{key}")
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for index, (left, right) in enumerate(zip(one, other)):
            yield from differences(left, right, f"{path}[{index}]")
    elif one != other:
        yield f"{path}: {json.dumps(one)} against {json.dumps(other)}"


def pairs_of(root):
    with open(os.path.join(root, "equal.yaml")) as file:
        pairs = yaml.safe_load(file)
    for platform in sorted(os.listdir(os.path.join(root, "node/overlays"))):
        overlay = f"node/overlays/{platform}"
        if not os.path.exists(os.path.join(root, overlay, "uninstall")):
            continue
        base = {"webhook": {"enabled": False}, "platform": platform}
        pairs.append({"name": f"the agent on {platform}", "overlay": overlay, "values": base})
        uninstall = merged(base, {"node": {"uninstall": True}})
        # With kustomize the rest stays applied from the overlay itself until the nodes are clean.
        pairs.append({"name": f"taking it off {platform}", "overlay": f"{overlay}/uninstall", "values": uninstall, "only": ["DaemonSet", "ConfigMap"]})
    for pair in pairs:
        # The images of kustomize are those of `make images`.
        pair["values"] = merged({"webhook": {"createNamespace": True}, "images": {"hub": "localhost"}}, pair["values"])
    return pairs


PLACEMENT = {
    "nodeSelector": {"pool": "mesh"},
    "tolerations": [{"key": "mesh", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": "Exists"}]}]}}},
    "podLabels": {"team": "mesh"},
    "podAnnotations": {"note": "a: b"},
    "extraEnv": [{"name": "A", "value": "b"}],
    "extraVolumes": [{"name": "tmp", "emptyDir": {}}],
    "extraVolumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    "serviceAccount": {"create": False, "name": "ours"},
}
# Settings that only the chart has.
CHART_ONLY = [
    {"revision": "r1", "revisionTags": ["stable", "default"], "webhook": {"enableNamespacesByDefault": True}},
    {"webhook": {"deactivated": True, "matchConditions": False, "excludedNamespaces": ["legacy"]}},
    {"webhook": {"skipHostNetwork": True, "replicas": 5, "extraArgs": ["--log-level=debug", "--max-connections=9"]}},
    {"webhook": {"url": "https://injector.example/inject", "caBundle": "Q0E="}, "node": {"extraArgs": ["--log_output_level=debug"]}},
    {"webhook": {"certificates": "cert-manager", "certManager": {"issuerRef": {"name": "ours", "kind": "ClusterIssuer"}}}},
    {"images": {"hub": "registry.example/weir", "tag": "2.0.0", "agent": "a@sha256:0"}, "node": {"enabled": True}, "revision": "default"},
    {"images": {"webhook": "r.example:5000/w@sha256:0", "agent": "a:1", "pullSecrets": [{"name": "registry"}]}, "platform": "eks"},
    {"admissionPolicies": {"enabled": False}},
    {"node": {"mode": "auto", "repair": False}},
    {"serviceMonitor": {"enabled": True, "labels": {"release": "p"}, "interval": "15s"}, "prometheusRule": {"enabled": True, "runbookUrl": "https://h/"}, "dashboards": {"enabled": True}},
    {"revision": "r1", "node": {"enabled": True}, "serviceMonitor": {"enabled": True}, "prometheusRule": {"enabled": True}, "dashboards": {"enabled": True}},
    {
        "images": {"pullPolicy": "Always"},
        "webhook": {"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "rack", "whenUnsatisfiable": "DoNotSchedule"}], "serviceAnnotations": {"a": "b"}} | PLACEMENT,
        "node": PLACEMENT | {"priorityClassName": "p"},
    },
    {"webhook": PLACEMENT, "node": PLACEMENT | {"uninstall": True}, "config": {"from": "istio"}, "platform": "openshift"},
    {"revision": "r1", "admissionPolicies": {"enabled": True, "actions": ["Audit", "Warn"], "revisions": ["r1", "prod"], "managers": {"users": [], "groups": ["ops"]}}},
    {"webhook": {"networkPolicy": True, "networkPolicyFrom": {"apiServer": [{"ipBlock": {"cidr": "192.0.2.0/24"}}], "metrics": [{"namespaceSelector": {}}]}}},
    {"config": {"values": {"global": {"hub": "yes", "variant": "a: b\n# c\n", "network": "'\"\\"}}, "mesh": {"rootNamespace": ""}}},
]


def weir(binary, values):
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(values, file)
        file.flush()
        done = subprocess.run([binary, "manifest", "generate", "-f", file.name], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"weir manifest generate: {done.stderr}")
    return objects(done.stdout)


def main(root, binary=None):
    chart = helm_python.Chart.load(os.path.join(root, "chart"))
    count, wrong = 0, []
    pairs = pairs_of(root)
    if binary:
        own = [merged({"webhook": {"createNamespace": True}}, values) for values in CHART_ONLY]
        pairs += [{"name": json.dumps(values), "values": values} for values in own]
    for pair in pairs:
        rendered = helm(chart, pair["values"])
        if not binary:
            only = pair.get("only")
            rendered = [item for item in rendered if not only or item["kind"] in only or f"{item['kind']} {item['metadata']['name']}" in only]
        from_helm = normal(rendered)
        other = normal(weir(binary, pair["values"]) if binary else kustomize(root, pair))
        found = list(differences(from_helm, other, ""))
        count += len(from_helm)
        wrong += [f"{pair['name']}: Helm against {'weir' if binary else 'kustomize'}: {text}" for text in found]
    if not count:
        wrong.append("nothing was compared")
    for text in wrong:
        print(text, file=sys.stderr)
    if wrong:
        sys.exit(1)
    print(f"{len(pairs)} settings, {count} objects: the same from Helm and from {'weir' if binary else 'kustomize'}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[3] if sys.argv[2:3] == ["--weir"] else None)
