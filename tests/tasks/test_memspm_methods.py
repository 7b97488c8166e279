"""What each method of domain adaptation learns, measures and writes, by the command as a user gives it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from tests.command import vision
from tests.tasks.stripes import DIRECTIONS, MEMORY, Run, predictions, run, write_config, write_domain, write_domains

ENTROPY = ["none", "half_log_c", "otsu"]
CLUSTERS = [*ENTROPY, "cluster", "cluster_otsu"]
# Of each method its rules, its own one, and that one in the words of the terminal's table.
RULES = {
    "memspm": ([*CLUSTERS, "usage", "fused", "blend"], "blend", "usage or clusters, by how far"),
    "dcc": (CLUSTERS, "cluster", "the nearest cluster has no class (DCC)"),
    "ovanet": ([*ENTROPY, "one_vs_all"], "one_vs_all", "one-vs-all classifiers (OVANet)"),
    "dance": (ENTROPY, "half_log_c", "entropy above half of log C"),
    "source_only": (ENTROPY, "half_log_c", "entropy above half of log C"),
}
LOSSES = {
    "memspm": {"ce", "aligned_ce", "cdd", "regulariser"},
    "dcc": {"ce", "aligned_ce", "cdd", "regulariser"},
    "ovanet": {"ce", "one_vs_all", "open_entropy"},
    "dance": {"ce", "neighbours", "separation"},
    "source_only": {"ce"},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = write_domains(tmp_path_factory.mktemp("domains"))
    write_domain(root / "later", (*DIRECTIONS[:2], DIRECTIONS[3]), 6.5, seed=3, number=5)
    return root


@pytest.fixture(scope="module")
def runs(root, tmp_path_factory) -> dict[str, Run]:
    folder = tmp_path_factory.mktemp("methods")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # or the command would share the cores out
        return {
            method: run(write_config(folder / f"{method}.yaml", root, model={"method": method})) for method in RULES
        }


@pytest.mark.parametrize("method", RULES)
def test_the_losses_are_finite_and_the_classes_are_learned(runs, method):
    for name in ("train_loss", "train_ce"):
        losses = runs[method].logged(name)
        assert len(losses) == 30
        assert all(math.isfinite(loss) for loss in losses)
    losses = runs[method].logged("train_ce")
    assert sum(losses[-5:]) < 0.25 * sum(losses[:5])
    assert runs[method].report["rules"]["none"]["common"] > 0.9


@pytest.mark.parametrize("method", RULES)
def test_each_method_has_its_own_losses(runs, method):
    logged = {name.removeprefix("train_") for name in runs[method].columns if name.startswith("train_")}
    assert logged == LOSSES[method] | {"loss"}


@pytest.mark.parametrize("method", RULES)
def test_a_test_writes_the_rules_that_the_method_has(runs, method):
    report = runs[method].report
    rules, own, _ = RULES[method]
    assert list(report["rules"]) == rules
    assert (report["method"], report["setting"], report["rule"]) == (method, "unida", own)
    assert report["classes"] == ["flat", "rising", "steep"]
    for measured in report["rules"].values():
        assert set(measured["recall_by_class"]) == {"0", "1", "3"}  # what the target has; 3 is the unknown
        assert 0 <= measured["h"] <= 1
    assert report["rules"]["none"]["unknown"] == 0
    assert report["rules"]["none"]["rejected"] == 0
    assert (report["clusters"] is not None) == (method in ("memspm", "dcc"))
    assert (report["memory"] is not None) == (method == "memspm")


@pytest.mark.parametrize("method", RULES)
def test_the_terminal_has_a_line_a_rule_and_marks_the_methods_own(runs, method):
    lines = runs[method].tested.stdout.splitlines()
    rules, _, words = RULES[method]
    (header,) = [number for number, line in enumerate(lines) if "unknown is what has" in line]
    table = lines[header + 1 : header + 1 + len(rules)]
    assert all("%" in line for line in table)
    (marked,) = [line for line in table if line.startswith("*")]
    assert marked.startswith(f"* {words}")
    assert lines[header + 1 + len(rules)].startswith("recall: flat ")


@pytest.mark.parametrize("method", RULES)
def test_a_checkpoint_holds_what_judges_new_pictures(runs, method):
    state = torch.load(runs[method].best, weights_only=True)["state_dict"]
    assert {"model.head.fc.weight", "model.rejection.weights", "model.rejection.threshold"} <= set(state)
    assert ("model.memory.weight" in state) == (method == "memspm")
    assert ("model.one_vs_all.weight" in state) == (method == "ovanet")
    centers, to_class = state["model.clusters.centers"], state["model.clusters.to_class"]
    assert len(centers) == len(to_class)
    assert (len(centers) >= 3) == (method in ("memspm", "dcc"))
    assert state["model.rejection.weights"].any()
    if method == "memspm":
        for usage in ("source_usage", "target_usage"):
            assert float(state[f"model.memory.{usage}"].sum()) == pytest.approx(1, abs=1e-5)


def test_the_memory_tells_what_is_private_to_the_target(runs):
    report = runs["memspm"].report
    assert report["rules"]["usage"]["auroc"] > 0.9
    assert report["rules"]["blend"]["h"] > 0.8
    assert report["clusters"]["with_a_class"] == 2
    assert report["clusters"]["without"] >= 1


@pytest.mark.parametrize("method", ["memspm", "ovanet"])
def test_predictions_are_classes_or_unknown(runs, method):
    rows = predictions(runs[method].config)
    assert list(rows[0]) == ["path", "class", "score", "sub_prototypes"]
    assert len(rows) == 36
    assert {row["class"] for row in rows} <= {"flat", "rising", "steep", "unknown"}
    for row in rows:
        assert (row["class"] == "unknown") == (float(row["score"]) <= 0)
        weights = [float(part.split(":")[1]) for part in row["sub_prototypes"].split()]
        assert len(weights) == (MEMORY["top_k"] if method == "memspm" else 0)
        assert weights == sorted(weights, reverse=True)
    # The table and the test say the same of the same pictures.
    truth = [Path(row["path"]).parent.name.replace("falling", "unknown") for row in rows]
    right = [row["class"] == name for row, name in zip(rows, truth, strict=True)]
    report = runs[method].report
    assert sum(right) / 36 == pytest.approx(report["rules"][report["rule"]]["accuracy"])


def test_validation_says_its_measures_and_predictions_where_they_are(runs):
    config = runs["memspm"].config
    said = vision("validate", "--config", config).stdout
    assert f"val_h {runs['memspm'].report['rules']['blend']['h']:.4f}" in said
    said = vision("predict", "--config", config).stdout
    (line,) = [line for line in said.splitlines() if line.startswith("vision: predictions: ")]
    assert Path(line.removeprefix("vision: predictions: ")).is_file()


def test_pictures_that_were_not_trained_on_are_judged_as_they_are_predicted(runs):
    config = runs["memspm"].config
    before = runs["memspm"].report
    assert vision("test", "--config", config, "--data.target_test", "later").returncode == 0
    measured = runs["memspm"].report["rules"]["blend"]
    assert measured["threshold"] == before["rules"]["blend"]["threshold"]
    assert measured["common"] >= 0.8
    rows = predictions(config, "--data.target_test", "later")
    assert len(rows) == 15
    truth = [Path(row["path"]).parent.name.replace("falling", "unknown") for row in rows]
    right = [row["class"] == name for row, name in zip(rows, truth, strict=True)]
    assert sum(right) / 15 == pytest.approx(measured["accuracy"])


def test_another_rule_than_the_trainings_may_be_asked_for(runs):
    config = runs["memspm"].config
    assert vision("test", "--config", config).returncode == 0
    before = runs["memspm"].report["rules"]["cluster"]
    assert vision("test", "--config", config, "--model.rule", "cluster").returncode == 0
    report = runs["memspm"].report
    assert report["rule"] == "cluster"
    assert report["rules"]["cluster"] == before
