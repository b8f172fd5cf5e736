"""deploy/alerts.yml and deploy/grafana-dashboard.json: they can be read, and each alert says what to do.

That they name what a real worker exports is tests/integration/test_observability.py's.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.promql import named
from tests.test_docs import anchor_of
from tests.test_docs import rows as table

ROOT = Path(__file__).parent.parent.parent.parent
GROUPS = yaml.safe_load((ROOT / "deploy" / "alerts.yml").read_text())["groups"]
ALERTS: dict[str, dict[str, Any]] = {rule["alert"]: rule for group in GROUPS for rule in group["rules"]}
DASHBOARD = json.loads((ROOT / "deploy" / "grafana-dashboard.json").read_text())
PANELS = {panel["title"]: panel for panel in DASHBOARD["panels"]}


def expressions() -> dict[str, str]:
    """Every expression of both files, by the alert's name or the panel's."""
    found = {name: rule["expr"] for name, rule in ALERTS.items()}
    for title, panel in PANELS.items():
        for target in panel.get("targets", []):
            found[f"{title} {target['refId']}"] = target["expr"]
    for annotation in DASHBOARD["annotations"]["list"]:
        found[annotation["name"]] = annotation["expr"]
    return found


@pytest.mark.parametrize(("name", "expression"), expressions().items(), ids=expressions().keys())
def test_every_expression_can_be_read(name: str, expression: str) -> None:
    """Brackets match, functions are spelt right, and it is about metrics of ours, of the process, or of Litestream's."""
    found = named(expression)
    assert found.metrics
    for metric in found.metrics:
        assert re.match(r"(solowriter|litestream|process|python)_", metric), metric
    for metric, labels in found.metrics.items():
        if metric.endswith("_bucket"):
            assert "le" in found.grouped | labels, f"{name}: a quantile needs its buckets"
    for counter in re.findall(r"\w+_(?:total|sum|count|bucket)\b", expression):
        used = re.search(rf"(?:rate|increase)\({counter}(?:{{[^}}]*}})?\[", expression)
        assert used, f"{name}: {counter} only grows, so its rate is what counts"


def test_every_alert_is_documented() -> None:
    """docs/observability.md has one row for each alert with its severity, and no row for anything else."""
    documented = table("observability.md", "## Dashboard and alerts")
    assert {name: cells[0] for name, cells in documented.items()} == {
        name: rule["labels"]["severity"] for name, rule in ALERTS.items()
    }
    assert len(ALERTS) == sum(len(group["rules"]) for group in GROUPS)


@pytest.mark.parametrize("name", [name for name, rule in ALERTS.items() if "_over_time" in rule["expr"]])
def test_a_look_back_needs_samples_of_its_beginning(name: str) -> None:
    """Of a series that is an hour old, the least value of a week is that of an hour: the alert would not wait."""
    expression = ALERTS[name]["expr"]
    (span,) = re.findall(r"\[(\d+[dh]):", expression)
    assert f" offset {span})" in expression.partition(" and ")[2]


@pytest.mark.parametrize("name", ALERTS)
def test_every_alert_says_what_to_do(name: str) -> None:
    """A summary, a next step, a heading of the documentation, and labels that the expression keeps."""
    rule = ALERTS[name]
    assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
    assert re.fullmatch(r"Solowriter[A-Z]\w+", name)
    assert rule["labels"] in ({"severity": "page"}, {"severity": "ticket"})
    assert re.fullmatch(r"\d+[mh]", rule.get("for", "1m"))
    notes = rule["annotations"]
    assert set(notes) == {"summary", "description", "runbook"}
    assert len(notes["summary"]) <= 90
    assert len(notes["description"]) > len(notes["summary"])
    page, _, anchor = notes["runbook"].partition("#")
    headings = re.findall(r"^#+ (.+)$", (ROOT / page).read_text(), re.MULTILINE)
    assert anchor in [anchor_of(heading) for heading in headings]
    kept = named(rule["expr"]).grouped
    assert set(re.findall(r"\$labels\.(\w+)", " ".join(notes.values()))) <= kept
    verbs = re.findall(r"`worker ([a-z]+)", " ".join(notes.values()))
    assert all(f"python -m worker {verb}" in (ROOT / "docs" / "command.md").read_text() for verb in verbs)


def test_the_dashboard_is_whole() -> None:
    """Panels have ids and places of their own, a description, and a data source that the import asks for."""
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(PANELS) == len(panels)
    taken = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(taken)) == len(taken)
    assert max(x for x, _ in taken) < 24
    sources = {variable["name"] for variable in DASHBOARD["templating"]["list"] if variable["type"] == "datasource"}
    for panel in panels:
        if panel["type"] == "row":
            continue
        assert panel["description"]
        assert panel["targets"]
        for target in panel["targets"]:
            assert target["datasource"]["uid"] in {f"${{{name}}}" for name in sources}
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= named(target["expr"]).grouped


@pytest.mark.parametrize(
    "wrong",
    ["sum(x", "sum(x))", "sum(x}", "rat(x[5m])", "x{a=1)", "x @ 5", "[5m]", "sum by (le (x))", 'x{a="b}'],
)
def test_a_wrong_expression_is_not_read(wrong: str) -> None:
    """What the reader does not know it refuses."""
    with pytest.raises(ValueError):  # noqa: PT011  # of many texts
        named(wrong)


def test_an_expression_is_read_as_prometheus_reads_it() -> None:
    """Metrics, selected labels, and labels that are grouped by."""
    found = named('sum by (le, a) (rate(x_bucket{b="1", c=~"4.."}[5m])) / ignoring(d) max(y offset 1h) > 0.1 or absent(z)')
    assert found.metrics == {"x_bucket": {"b", "c"}, "y": set(), "z": set()}
    assert found.grouped == {"le", "a", "d"}
