"""What the README says is so."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
ROWS = json.loads((ROOT / "benchmarks/results.json").read_text(encoding="utf-8"))["rows"]


def test_its_speed_table_is_what_was_measured():
    rows = {(row["group"], row["case"]): row for row in ROWS}
    table = re.findall(r"^\| ((?:time|peak)[^|]*) \| ([\d.]+) \| ([\d.]+) \|$", README, flags=re.M)
    assert len(table) == 3
    for group, ours, theirs in table:
        assert f"{rows[group, 'GradCAM']['multiple']:.2f}" == ours, group
        assert f"{rows[group, 'PyPI grad-cam: GradCAM']['multiple']:.2f}" == theirs, group


def test_its_table_of_other_networks_is_what_was_measured():
    rows = {(row["group"], row["case"]): row["multiple"] for row in ROWS}
    table = re.findall(r"^\| ([\w-]+, batch [18]) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", README, flags=re.M)
    assert len(table) == 8
    for group, *said in table:
        assert said == [f"{rows[group, case]:.2f}" for case in ("GradCAM", "LayerCAM", "GradCAM, nothing told")], group


def test_what_was_measured_is_within_its_bound():
    for row in ROWS:
        assert row["bound"] is None or row["multiple"] <= row["bound"], row


def test_its_other_figures_are_what_was_measured():
    cost = {row["case"]: row["multiple"] for row in ROWS if row["group"] in ("methods, batch 8", "classes, batch 1")}
    said = README.split("Batch 8, multiples of a forward pass:")[1].split("## More")[0]
    six = ["HiResCAM", "LayerCAM", "GradCAMPlusPlus", "XGradCAM", "EigenCAM", "EigenGradCAM"]
    assert [name for name in six if name not in said] == []
    named = [
        max(cost[name] for name in six),
        cost["eight methods, compare"],
        cost["GradCAM, aug_smooth"],
        cost["ten classes, GradCAM.many"],
        cost["FullGrad"],
    ]
    assert re.findall(r"\d+\.\d\d", said) == [f"{value:.2f}" for value in named]


def test_its_methods_are_those_of_the_package():
    from gradcam_nb import list_methods

    assert set(re.findall(r"^\| \[(\w+)\]\(nbs/methods/", README, flags=re.M)) == set(list_methods())


def test_its_metrics_are_those_of_the_package():
    from gradcam_nb import list_metrics

    named = re.findall(r"^\| \[(\w+)\]\(nbs/metrics/\w+\.ipynb\) ([↑↓])", README, flags=re.M)
    assert dict(named) == {name: "↑" if metric.higher_is_better else "↓" for name, metric in list_metrics().items()}


def test_scorecam_and_road_are_as_much_faster_as_promised():
    rows = {(row["group"], row["case"]): row["multiple"] for row in ROWS}
    group = "ScoreCAM, 2,048 channels"
    assert rows[group, "ScoreCAM"] <= 0.8 * rows[group, "PyPI grad-cam: ScoreCAM"]
    assert rows["ROADCombined, batch 1", "ROADCombined"] <= 0.35
    assert rows["ROAD's filling, batch 1", "filling"] <= 0.1
