#!/usr/bin/env python3
"""Tests the alerts and dashboards: `promtool check rules`, `promtool test rules`, a runbook page for each alert, and parsable JSON.

    check.py PROMTOOL             needs PyYAML
    check.py PROMTOOL --metrics   prints the names of the metrics that alerts and panels use, one a line
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile

import yaml

HERE = os.path.dirname(os.path.abspath(__file__))
CHART = os.path.join(HERE, "../chart/observability")
RUNBOOKS = os.path.join(HERE, "../../docs/runbooks")
# Words of PromQL that look like metrics.
WORDS = {"sum", "by", "rate", "increase", "min", "max", "count", "and", "on", "or", "le", "histogram_quantile", "absent", "time"}


def dashboards():
    return [json.load(open(os.path.join(CHART, name))) for name in sorted(os.listdir(CHART)) if name.endswith(".json")]


def metrics(expression):
    """Names of the metrics in a PromQL expression."""
    without = re.sub(r'\{[^}]*\}|\[[^\]]*\]|"[^"]*"|\b(by|on) \([^)]*\)', " ", expression)
    return set(re.findall(r"\b[a-z_][a-z0-9_]*\b(?!\()", without)) - WORDS


def main(promtool, names_only):
    with open(os.path.join(CHART, "prometheus-rule.yaml")) as file:
        rules = yaml.safe_load(file)["spec"]
    alerts = [rule for group in rules["groups"] for rule in group["rules"]]
    panels = [panel for board in dashboards() for panel in board["panels"]]
    expressions = [alert["expr"] for alert in alerts] + [target["expr"] for panel in panels for target in panel["targets"]]
    if names_only:
        print("\n".join(sorted(set().union(*map(metrics, expressions)))))
        return
    wrong = []
    pages = {f"{alert['alert']}.md" for alert in alerts}
    found = {name for name in os.listdir(RUNBOOKS) if name != "README.md"}
    wrong += [f"docs/runbooks/{name}: missing, or of no alert" for name in sorted(pages ^ found)]
    for alert in alerts:
        if alert["annotations"]["runbook_url"] != f"docs/runbooks/{alert['alert']}.md":
            wrong.append(f"{alert['alert']}: runbook_url is {alert['annotations']['runbook_url']}")
    with open(os.path.join(HERE, "rules-test.yaml")) as file:
        tested = file.read()
    wrong += [f"{alert['alert']}: no test in rules-test.yaml lets it fire" for alert in alerts if alert["alert"] not in tested]
    with tempfile.TemporaryDirectory() as work:
        # What Prometheus makes of panels, as recording rules: their expressions have to parse.
        recorded = [
            {"record": "panel", "expr": target["expr"].replace("$__rate_interval", "5m").replace("$namespace", ".*"), "labels": {"at": f"{panel['title']} {target['refId']}"}}
            for panel in panels for target in panel["targets"]
        ]  # fmt: skip
        for name, content in (("rules.yaml", rules), ("panels.yaml", {"groups": [{"name": "panels", "rules": recorded}]})):
            with open(os.path.join(work, name), "w") as file:
                yaml.safe_dump(content, file)
        shutil.copy(os.path.join(HERE, "rules-test.yaml"), work)
        for command in (["check", "rules", "rules.yaml", "panels.yaml"], ["test", "rules", "rules-test.yaml"]):
            done = subprocess.run([promtool, *command], cwd=work, capture_output=True, text=True)
            if done.returncode:
                wrong.append(f"promtool {' '.join(command)}:\n{done.stdout}{done.stderr}")
    if wrong:
        sys.exit("\n".join(wrong))
    print(f"observability: {len(alerts)} alerts and {len(panels)} panels, tested with promtool")


if __name__ == "__main__":
    main(os.path.abspath(sys.argv[1]), sys.argv[2:] == ["--metrics"])
