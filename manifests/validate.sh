#!/usr/bin/env bash
# Renders the manifests as `kubectl apply -k` would and validates them against the schema of Kubernetes, offline.
# For the webhook with every component, and for the agent on every platform, for the oldest Kubernetes that is served and for newer ones.
# Lints the Helm chart, and holds what it renders to against what kustomize does, object by object (compare.py). Tests the alerts.
# The tools come from PyPI into a folder below target/. Without kubectl (and outside CI) only the files themselves are validated.
set -euo pipefail
cd "$(dirname "$0")/.."

versions=(1.29 1.32 1.36)
venv=target/tools/kubernetes-validate
if [ ! -x "$venv/bin/kubernetes-validate" ] || ! "$venv/bin/python" -c 'import helm_python' 2>/dev/null; then
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check --no-cache-dir "kubernetes-validate==1.37.0" "helm-python-sdk==0.2.2" "PyYAML==6.0.3"
fi
# validate FILE: silent where it is valid for every version.
validate() {
  local version
  for version in "${versions[@]}"; do
    "$venv/bin/kubernetes-validate" --strict -k "$version" "$1" >"$work/verdict" 2>&1 ||
      { echo "not valid for Kubernetes $version:"; cat "$work/verdict"; return 1; }
  done
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if ! command -v kubectl >/dev/null; then
  if [ -n "${CI:-}" ]; then
    echo "kubectl is missing: the manifests cannot be rendered" >&2
    exit 1
  fi
  echo "note: kubectl is missing; validating the files without rendering them" >&2
  for file in $(ls manifests/base/*.yaml manifests/node/{base,uninstall}/*.yaml | grep -v kustomization); do validate "$file"; done
  exit
fi

# Rendering with a certificate of one's own needs one; what is in it does not matter here.
cp -r manifests "$work/manifests"
certs="$work/manifests/components/own-certificate/certs"
rm -rf "$certs"
if kubectl kustomize "$work/manifests/overlays/own-certificate" >"$work/without.yaml" 2>/dev/null; then
  echo "the manifests render without the certificate that they name: a webhook without a CA could be applied" >&2
  exit 1
fi
mkdir "$certs"
for file in ca.crt tls.crt tls.key; do echo "placeholder $file" >"$certs/$file"; done
echo "placeholder client CA" >"$work/manifests/components/client-certificates/ca.crt"

# The webhook: as it is, with each component, and as the overlays put them together.
kubectl kustomize "$work/manifests" >"$work/all.yaml"
for component in "$work"/manifests/components/*/; do
  with="$work/manifests/overlays/with-$(basename "$component")"
  mkdir "$with"
  printf 'resources: [../../base]\ncomponents: [../../image, ../../components/%s]\n' "$(basename "$component")" >"$with/kustomization.yaml"
done
variants=0
for file in "$work"/manifests/overlays/*/kustomization.yaml; do
  kubectl kustomize "$(dirname "$file")" >"$work/overlay.yaml" || { echo "overlay $file does not render" >&2; exit 1; }
  { echo ---; cat "$work/overlay.yaml"; } >>"$work/own-and-others.yaml"
  variants=$((variants + 1))
done
rm -r "$work"/manifests/overlays/with-*

# Who writes caBundle: the webhook, unless the CA is given.
bundles=$(grep -c 'caBundle:' "$work/all.yaml" || true)
kubectl kustomize "$work/manifests/overlays/own-certificate" >"$work/overlay.yaml"
trusting=$(grep -c "caBundle: $(base64 -w0 <"$certs/ca.crt")\$" "$work/overlay.yaml" || true)
if [ "$bundles" != 0 ] || [ "$trusting" != 4 ]; then
  echo "$bundles entries have a caBundle where the webhook writes it, $trusting of 4 where it is given" >&2
  exit 1
fi

# The agent: every platform, installing and uninstalling, and every component with the plainest of them. Kinds that are not Kubernetes'
# own have no schema here. All in one file: the validator takes longer to start than to judge.
for component in "$work"/manifests/node/components/*/; do
  with="$work/manifests/node/overlays/with-$(basename "$component")"
  mkdir "$with"
  printf 'resources: [../kubeadm]\ncomponents: [../../components/%s]\n' "$(basename "$component")" >"$with/kustomization.yaml"
done
overlays=0
for file in "$work"/manifests/node/overlays/{*/,*/uninstall/}kustomization.yaml; do
  name=${file#"$work/manifests/node/overlays/"}
  kubectl kustomize "$(dirname "$file")" >"$work/overlay.yaml" || { echo "overlay $name does not render" >&2; exit 1; }
  { echo ---; cat "$work/overlay.yaml"; } >>"$work/own-and-others.yaml"
  # Every platform has its folders where the plugin is told they are.
  for folder in NET BIN; do
    path=$(sed -n "s/^  CNI_${folder}_DIR: //p" "$work/overlay.yaml")
    grep -qx "          path: $path" "$work/overlay.yaml" || { echo "$name: CNI_${folder}_DIR is $path, but that is not mounted" >&2; exit 1; }
  done
  overlays=$((overlays + 1))
done
python3 - "$work/own-and-others.yaml" >"$work/own.yaml" <<'PYTHON'
import re, sys
for document in re.split(r"(?m)^---$", open(sys.argv[1]).read())[1:]:
    group = re.search(r"(?m)^apiVersion: (\S+)$", document).group(1).partition("/")[0]
    if "." not in group or (group.endswith(".k8s.io") and group != "k8s.cni.cncf.io"):
        print("---\n" + document.strip("\n"))
PYTHON
{ echo ---; cat "$work/all.yaml"; } >>"$work/own.yaml"
validate "$work/own.yaml" >&2
rm -r "$work"/manifests/node/overlays/with-*

"$venv/bin/python" - "$work/manifests/chart" <<'PYTHON'
import sys, helm_python
found = helm_python.lint(sys.argv[1], strict=True)
# A finding of severity 1 is advice (an icon, for catalogues of charts).
wrong = found["errors"] + [message["error"] for message in found["messages"] if message["severity"] > 1]
sys.exit("\n".join(wrong) or None)
PYTHON
compared=$("$venv/bin/python" manifests/compare.py "$work/manifests")

"$venv/bin/python" manifests/chart/reference.py --check

# Alerts and dashboards.
promtool=$(command -v promtool || echo target/tools/prometheus/usr/bin/promtool)
if [ -x "$promtool" ] || scripts/fetch-packages prometheus trixie "usr/bin/promtool --version" prometheus promtool >/dev/null; then
  observability=$("$venv/bin/python" manifests/observability/check.py "$promtool")
elif [ -n "${CI:-}" ]; then
  echo "promtool is missing: the alerts cannot be tested" >&2
  exit 1
else
  observability="promtool is missing, the alerts were not tested"
fi

# The validator can say no: a misspelt key must not pass.
sed 's/^  replicas:/  replica:/' "$work/all.yaml" >"$work/misspelt.yaml"
if validate "$work/misspelt.yaml" >/dev/null 2>&1; then
  echo "the validator takes a misspelt key: its verdict is worth nothing" >&2
  exit 1
fi
echo "manifests: the webhook in $variants variants and $overlays overlays of the agent are valid for Kubernetes ${versions[*]}; $compared; $observability"
