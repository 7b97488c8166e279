"""Losses of several tasks where labels are missing."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from vision.labels import LabelSchema, count_labels
from vision.medic.losses import MaskedLosses, class_balanced_weights, log_priors, means

SCHEMA = LabelSchema.parse({"level": {"classes": ["a", "b", "c"], "ordinal": True}, "kind": ["x", "y", "z", "w"]})
LABELS = torch.tensor([[0, 3], [2, -1], [-1, -1], [1, 0], [-1, 2]])


def logits(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(5, len(of), generator=generator) for name, of in SCHEMA.tasks.items()}


def test_a_task_that_nobody_labelled_leaves_the_others_gradients_alone():
    given = {name: values.requires_grad_() for name, values in logits().items()}
    alone = LABELS.clone()
    alone[:, 0] = -1
    means(MaskedLosses(SCHEMA)(given, alone), count_labels(alone)).sum().backward()
    without = logits()["kind"].requires_grad_()
    F.cross_entropy(without, alone[:, 1], ignore_index=-1).backward()
    assert torch.equal(given["level"].grad, torch.zeros(5, 3))
    torch.testing.assert_close(given["kind"].grad, without.grad)


def test_no_label_at_all_is_a_zero_that_can_be_differentiated():
    given = {name: values.requires_grad_() for name, values in logits().items()}
    none = torch.full((5, 2), -1)
    total = means(MaskedLosses(SCHEMA)(given, none), count_labels(none)).sum()
    total.backward()
    assert total.item() == 0
    assert not given["kind"].grad.any()


def test_parts_of_a_batch_add_up_to_the_whole():
    """Sums over the global count; a mean over the parts' own means would be something else."""
    given = logits()
    losses, counts = MaskedLosses(SCHEMA), count_labels(LABELS)
    whole = means(losses(given, LABELS), counts)
    parts = [slice(0, 1), slice(1, 5)]
    summed = sum(means(losses({k: v[p] for k, v in given.items()}, LABELS[p]), counts) for p in parts)
    torch.testing.assert_close(summed, whole)
    own = sum(means(losses({k: v[p] for k, v in given.items()}, LABELS[p]), count_labels(LABELS[p])) for p in parts) / 2
    assert not torch.allclose(own, whole)


def test_ordinal_head_by_hand():
    """Cumulative logits (1, -2), true class 1: "more than 0" is right, "more than 1" is wrong."""
    losses = MaskedLosses(SCHEMA, {"level"})
    given = {"level": torch.tensor([[1.0, -2.0]] * 2), "kind": torch.zeros(2, 4)}
    found = losses(given, torch.tensor([[1, -1], [-1, -1]]))
    assert found.tolist() == pytest.approx([math.log1p(math.exp(-1)) + math.log1p(math.exp(-2)), 0.0])


def test_class_balanced_weights_by_hand():
    """Effective numbers with beta 1/2: 1 of 1 image, 1.75 of 3 images; the mean over the images is 1."""
    weights = class_balanced_weights([1, 3, 0], beta=0.5)
    raw = [1.0, 1 / 1.75]
    scale = 4 / (1 * raw[0] + 3 * raw[1])
    assert weights.tolist() == pytest.approx([raw[0] * scale, raw[1] * scale, 0.0])
    assert class_balanced_weights([5, 90], beta=0.0).tolist() == pytest.approx([1.0, 1.0])


def test_weights_and_priors_reach_the_loss():
    given = logits()
    weights = {"kind": torch.tensor([1.0, 2.0, 3.0, 4.0])}
    priors = {"kind": log_priors([1, 2, 3, 4])}
    labelled = LABELS[:, 1] >= 0
    target = LABELS[labelled, 1]
    each = F.cross_entropy(given["kind"][labelled], target, reduction="none")
    weighted = MaskedLosses(SCHEMA, class_weights=weights)(given, LABELS)[1]
    assert weighted.item() == pytest.approx(float((each * weights["kind"][target]).sum()), rel=1e-6)
    adjusted = MaskedLosses(SCHEMA, adjustment=priors)(given, LABELS)[1]
    shifted = given["kind"][labelled] + torch.tensor([0.1, 0.2, 0.3, 0.4]).log()
    assert adjusted.item() == pytest.approx(float(F.cross_entropy(shifted, target, reduction="sum")), rel=1e-6)
    ordinal = MaskedLosses(SCHEMA, {"level"}, class_weights={"level": torch.tensor([0.0, 0.0, 5.0])})
    heads = {**given, "level": given["level"][:, :2]}
    only_last = MaskedLosses(SCHEMA, {"level"})(heads, torch.where(LABELS == 2, LABELS, -1))[0]
    assert ordinal(heads, LABELS)[0].item() == pytest.approx(5 * only_last.item(), rel=1e-6)
