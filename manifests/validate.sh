#!/usr/bin/env bash
# Renders the manifests as `kubectl apply -k` would and validates them against the schema of Kubernetes, offline.
# The validator comes from PyPI into a folder below target/. Without kubectl (and outside CI) only the files themselves are validated.
set -euo pipefail
cd "$(dirname "$0")/.."

kubernetes=1.32
venv=target/tools/kubernetes-validate
if [ ! -x "$venv/bin/kubernetes-validate" ]; then
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check --no-cache-dir "kubernetes-validate==1.37.0"
fi
validate() { "$venv/bin/kubernetes-validate" --strict -k "$kubernetes" "$@"; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if ! command -v kubectl >/dev/null; then
  if [ -n "${CI:-}" ]; then
    echo "kubectl is missing: the manifests cannot be rendered" >&2
    exit 1
  fi
  echo "note: kubectl is missing; validating the files without rendering them" >&2
  validate $(ls manifests/base/*.yaml | grep -v kustomization)
  exit
fi

# Rendering needs certificates; what is in them does not matter here.
cp -r manifests "$work/manifests"
rm -rf "$work/manifests/certs"
if kubectl kustomize "$work/manifests" >"$work/without.yaml" 2>/dev/null; then
  echo "the manifests render without certificates: a webhook without a CA could be applied" >&2
  exit 1
fi
mkdir "$work/manifests/certs"
for file in ca.crt tls.crt tls.key; do echo "placeholder $file" >"$work/manifests/certs/$file"; done
kubectl kustomize "$work/manifests" >"$work/all.yaml"
validate "$work/all.yaml" >"$work/verdict" || { cat "$work/verdict" >&2; exit 1; }

ca=$(base64 -w0 <"$work/manifests/certs/ca.crt")
entries=$(grep -c 'sidecar-injector.weir.dev$' "$work/all.yaml")
trusting=$(grep -c "caBundle: $ca\$" "$work/all.yaml" || true)
if [ "$entries" != 4 ] || [ "$trusting" != "$entries" ]; then
  echo "$trusting of $entries webhook entries have the CA; expected 4 of 4" >&2
  exit 1
fi

# The validator can say no: a misspelt key must not pass.
sed 's/^  replicas:/  replica:/' "$work/all.yaml" >"$work/misspelt.yaml"
if validate "$work/misspelt.yaml" >/dev/null 2>&1; then
  echo "the validator takes a misspelt key: its verdict is worth nothing" >&2
  exit 1
fi
echo "manifests: $(grep -c '^kind:' "$work/all.yaml") objects are valid for Kubernetes $kubernetes, $entries webhook entries have their CA"
