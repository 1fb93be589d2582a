#!/usr/bin/env python3
"""Writes README.md of the chart from values.schema.json and values.yaml; with --check, says whether it is current. Needs PyYAML."""

import json
import os
import sys

import yaml

HERE = os.path.dirname(os.path.abspath(__file__))
# Documents of Istio, and the table of platforms: values.yaml shows them better than a row could.
LONG = ("config.values", "config.mesh", "platforms")


def kind(schema):
    if "enum" in schema:
        return ", ".join(f"`{json.dumps(value)}`" if not isinstance(value, str) else f"`{value}`" for value in schema["enum"] if value != "")
    if schema.get("type") == "array":
        items = schema.get("items", {})
        return "list of " + (kind(items) if "enum" in items else {"string": "strings", "object": "objects"}.get(items.get("type"), "values"))
    found = schema.get("type", "any")
    return " or ".join(found) if isinstance(found, list) else found


def rows(schema, values, path=""):
    for name, inner in schema.get("properties", {}).items():
        at = f"{path}.{name}" if path else name
        default = values.get(name) if isinstance(values, dict) else None
        if inner.get("properties") and at not in LONG:
            yield from rows(inner, default, at)
            continue
        if "description" not in inner:
            sys.exit(f"values.schema.json: {at} has no description")
        shown = "see values.yaml" if at in LONG else f"`{json.dumps(default)}`" if default is not None else ""
        yield f"| `{at}` | {kind(inner)} | {shown} | {inner['description'].replace('|', chr(92) + '|')} |"


def main(check):
    with open(os.path.join(HERE, "values.schema.json")) as file:
        schema = json.load(file)
    with open(os.path.join(HERE, "values.yaml")) as file:
        values = yaml.safe_load(file)
    with open(os.path.join(HERE, "Chart.yaml")) as file:
        chart = yaml.safe_load(file)
    text = "\n".join([
        "# Chart `weir`",
        "",
        f"{chart['description']}. [manifests/README.md](../README.md) says how to install, upgrade and uninstall it.",
        "",
        "```console",
        "helm install weir manifests/chart --namespace weir-system --create-namespace --set images.hub=registry.example/weir",
        "helm test weir --namespace weir-system",
        "```",
        "",
        "## Values",
        "",
        "`weir install --set` and `-f` take the same. [values.yaml](values.yaml) has the defaults with comments;",
        "[values.schema.json](values.schema.json) rejects everything else.",
        "",
        "| value | type | default | meaning |",
        "|---|---|---|---|",
        *rows(schema, values),
        "",
        "Written by [reference.py](reference.py).",
        "",
    ])  # fmt: skip
    path = os.path.join(HERE, "README.md")
    if not check:
        with open(path, "w") as file:
            file.write(text)
    elif not os.path.exists(path) or open(path).read() != text:
        sys.exit("manifests/chart/README.md is not current: run manifests/chart/reference.py")


if __name__ == "__main__":
    main(sys.argv[1:] == ["--check"])
