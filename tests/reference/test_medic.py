"""MEDIC against the numbers of the official code and of LibMTL; what the kinds of cases hold is said in their files."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from datamodules.multitask_listing import Classes, read_table
from tasks.multitask_measures import MultitaskMeasures
from tests.reference.cases import Case, assert_close, case_names, load_case, normal
from vision.labels import MISSING, LabelSchema, count_labels
from vision.medic.checkpoint import OFFICIAL_TASKS
from vision.medic.gradients import CAGrad, GradNorm, PCGrad
from vision.medic.losses import MaskedLosses, means
from vision.medic.measures import confusion_measures, majority_confusion, per_class
from vision.medic.weighting import DWA, FAMO, EqualWeights, UncertaintyWeights, Weighting


def check_metrics(case: Case) -> None:
    for name, given in case.info["cases"].items():
        classes = given["classes"]
        ordinal = given.get("mean_abs_error") is not None
        schema = LabelSchema.parse({"task": {"classes": classes, "ordinal": ordinal}})
        expected = np.array(given["confusion"])
        if "y_true" in given:
            truth, guess = torch.tensor(given["y_true"]), torch.tensor(given["y_pred"])
            # As a network's logits, in two batches, among images without a label.
            logits = torch.nn.functional.one_hot(torch.cat([guess, guess[:2]]), len(classes)).float() * 5
            labels = torch.cat([truth, torch.full((2,), MISSING)])[:, None]
            measures = MultitaskMeasures(schema, set())
            for part in (slice(0, 5), slice(5, None)):
                measures.update({"task": logits[part]}, labels[part], torch.zeros(1))
            found, matrices = measures.finish()
            measured, matrix = found["task"], matrices["task"]
        else:
            matrix = majority_confusion(np.diag(expected.sum(axis=1)), int(expected.sum(axis=0).argmax()))
            measured = confusion_measures(matrix, ordinal)
        assert np.array_equal(matrix, expected), name
        wanted = {key: given[key] for key in ("accuracy", "precision_weighted", "recall_weighted", "f1_weighted")}
        for average, key in (("macro", "macro_all_classes"), ("weighted", "weighted_all_classes")):
            wanted |= {f"{m}_{average}": v for m, v in zip(("precision", "recall", "f1"), given[key], strict=True)}
        if ordinal:
            wanted["mean_absolute_error"] = given["mean_abs_error"]
        if given.get("quadratic_kappa") is not None:
            wanted["quadratic_kappa"] = given["quadratic_kappa"]
        assert {key: measured[key] for key in wanted} == pytest.approx(wanted, abs=1e-6), name
        assert given["micro"] == pytest.approx([measured["accuracy"]] * 3, abs=1e-6), name
        by_class = per_class(matrix, classes)
        for key, values in given["per_class"].items():
            assert [by_class[label][key] for label in classes] == pytest.approx(values, abs=1e-6), (name, key)
        # Where the two libraries agree; of a class that neither occurs nor is predicted they do not.
        if (matrix.sum(axis=0) + matrix.sum(axis=1)).all():
            assert measured["f1_macro"] == pytest.approx(given["torchmetrics_1_9"]["macro"]["f1"], abs=1e-6), name


def check_masked_loss(case: Case) -> None:
    order, sizes = case.info["config"]["task_order"], case.info["config"]["num_classes"]
    schema = LabelSchema.parse({name: [str(i) for i in range(size)] for name, size in zip(order, sizes, strict=True)})
    shape = ast.literal_eval(case.info["input_rule"].split("standard_normal(")[1].split(")")[0] + ")")
    names = {key.removesuffix("_labels") for key in case.arrays if key.endswith("_labels")}
    results: dict[str, object] = {}
    for name in names:
        labels = torch.from_numpy(case.arrays[f"{name}_labels"])
        logits = normal(shape).requires_grad_()
        parts = dict(zip(order, logits.split(sizes, dim=1), strict=True))
        losses = means(MaskedLosses(schema)(parts, labels), count_labels(labels))
        losses.sum().backward()
        results |= {f"{name}_labels": labels, f"{name}_grad_correct": logits.grad}
        wanted = case.info["values"][f"{name}_correct"]
        assert float(losses.sum()) == pytest.approx(wanted["loss"], abs=1e-6)
        for found, value in zip(losses.tolist(), wanted["per_task"], strict=True):
            assert found == pytest.approx(value if value is not None else 0.0, abs=1e-6)
        # The official code is right where every task has a label, and then only.
        official = f"{name}_grad_official"
        everywhere = bool((count_labels(labels) > 0).all())
        same = np.allclose(case.arrays[official], logits.grad, atol=1e-6)
        assert same == everywhere, name
        results[official] = case.arrays[official]
    case.compare(results, tolerance=1e-6)


def check_labels(case: Case, folder: Path) -> None:
    tasks = case.info["tasks"]
    schema = LabelSchema.parse(OFFICIAL_TASKS)
    assert {name: list(of.classes) for name, of in schema.tasks.items()} == tasks
    for given in case.info["cases"]:
        labels = given["labels"]
        task = next(name for name, classes in tasks.items() if {label for label in labels if label} <= set(classes))
        file = folder / "table.tsv"
        rows = [f"data/{i}.jpg\t{label}" for i, label in enumerate(labels)]
        file.write_text("\n".join([f"image_path\t{task}", *rows]) + "\n")
        table = read_table(folder, file.name, Classes(schema.subset([task]), {}))
        found = table.labels()[:, 0].tolist()
        assert found == [tasks[task].index(label) if label else MISSING for label in labels]
        # The official indices depend on what the file happens to hold.
        official = [given["class_to_idx"][label] for label in labels]
        assert (found == official) == (set(tasks[task]) <= set(labels))
    for task, names in case.info["hf_class_order"].items():
        file = folder / "table.tsv"
        file.write_text("\n".join([f"image_path\t{task}", *(f"data/{i}.jpg\t{i}" for i in range(len(names)))]) + "\n")
        table = read_table(folder, file.name, Classes(schema.subset([task]), {task: names}))
        assert [tasks[task][index] for index in table.labels()[:, 0]] == names


class OrderedPCGrad(PCGrad):
    """Visits the tasks in their order, as the reference does."""

    def _order(self, count: int, generator: torch.Generator) -> list[int]:
        return list(range(count))


RULES: dict[str, Callable[..., Weighting]] = {
    "EW": EqualWeights,
    "UW": UncertaintyWeights,
    "DWA": lambda T=2.0: DWA(temperature=T),  # noqa: N803
    "GradNorm": GradNorm,
    "PCGrad": OrderedPCGrad,
    "CAGrad": lambda calpha=0.5, rescale=1: CAGrad(calpha),
    "FAMO": lambda FAMO_w_lr=0.025, FAMO_w_gamma=1e-3: FAMO(FAMO_w_lr, FAMO_w_gamma),  # noqa: N803
}
NOT_OURS = {"GLS", "IMTL", "MGDA", "DB_MTL", "FairGrad", "Aligned_MTL"}  # rules of LibMTL that this package has not


def _problem(case: Case) -> tuple[Tensor, Tensor]:
    """Losses ``(T,)`` and gradients ``(T, parameters)``, in float64."""
    a, b, scale = (torch.from_numpy(case.arrays[key]).double() for key in ("A", "b", "scale"))
    theta = torch.from_numpy(case.arrays["theta"]).double().requires_grad_()
    losses = scale * 0.5 * ((a @ theta - b) ** 2).mean(dim=1) + 0.1
    gradients = [torch.autograd.grad(loss, theta, retain_graph=True)[0] for loss in losses]
    return losses.detach(), torch.stack(gradients)


def check_weighting(case: Case) -> None:
    losses, gradients = _problem(case)
    case.compare({**case.arrays, "task_grads": gradients}, tolerance=1e-5)
    unit = gradients / gradients.norm(dim=1, keepdim=True)
    assert_close("cosines", unit @ unit.T, case.info["task_cosines"], 1e-5)
    epochs = torch.tensor(case.info["train_loss_buffer"]).T[: case.info["epoch"]]
    present = torch.ones(len(losses), dtype=torch.bool)
    checked = 0
    for name, wanted in case.info["values"].items():
        kind = name.split("{")[0]
        if kind in NOT_OURS:
            continue
        assert kind in RULES, f"a rule that is not checked: {name}"
        rule = RULES[kind](**wanted["args"])
        rule.bind([str(i) for i in range(len(losses))])
        for means_of_epoch in epochs:
            rule.end_epoch(means_of_epoch)
        assert_close(f"{name}: losses", losses, wanted["losses"])
        gram = gradients @ gradients.T
        weights = rule.weights(losses.float(), present, gram)
        # 1e-4 where a solver is in it, as in the spec.
        tolerance = 1e-4 if kind == "CAGrad" else 1e-5
        assert_close(f"{name}: gradient", weights.double() @ gradients, wanted["grad_theta"], tolerance)
        if wanted["weights"] is not None and kind != "CAGrad":  # CAGrad's there are those of the correction alone
            assert_close(f"{name}: weights", weights, wanted["weights"])
        if "grad_loss_scale" in wanted:
            learned = rule.get_parameter("scale")
            assert_close(f"{name}: start", learned, wanted["loss_scale_init"])
            (found,) = torch.autograd.grad(rule.own_loss(losses.float(), present, gram), learned)
            assert_close(f"{name}: own gradient", found, wanted["grad_loss_scale"])
        if "w_after_update" in wanted:
            rule.after_step(losses.float(), torch.tensor(wanted["losses_after_step"]), present)
            assert_close(f"{name}: after the step", rule.get_buffer("w"), wanted["w_after_update"])
        checked += 1
    assert checked


@pytest.mark.parametrize("name", case_names("medic"))
def test_medic(name: str, tmp_path: Path) -> None:
    case = load_case("medic", name)
    checks = {
        "metrics": check_metrics,
        "masked_loss": check_masked_loss,
        "labels": lambda case: check_labels(case, tmp_path),
        "weighting": check_weighting,
    }
    assert case.kind in checks, f"{name} is of a kind that is not checked: {case.kind}"
    checks[case.kind](case)
