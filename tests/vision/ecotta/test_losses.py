"""What adaptation minimises, beside the numbers of the official and community code and some by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.reference.cases import COPIES
from vision.ecotta.frozen import FrozenOps
from vision.ecotta.losses import (
    confident,
    cross_entropy_of,
    eata_weights,
    entropy,
    filtered_entropy,
    flat_logits,
    regularisation,
    symmetric_cross_entropy,
)

LN10 = math.log(10)


@pytest.fixture(scope="module")
def case() -> dict[str, Tensor]:
    with np.load(COPIES / "ecotta" / "losses.npz") as file:
        return {key: torch.from_numpy(np.asarray(value)) for key, value in file.items()}


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected.to(found.dtype), rtol=1e-5, atol=1e-6)


def test_entropies_and_which_are_small_enough(case):
    entropies = entropy(case["logits"])
    close(entropies, case["entropy"])
    assert torch.equal(confident(entropies, 10), case["mask"])
    assert case["e_margin"].item() == pytest.approx(0.4 * LN10)


@pytest.mark.parametrize(
    ("reduction", "loss", "gradient"),
    [
        ("kept", "loss_filtered_mean", "grad_logits"),
        ("batch", "loss_eq2_mean_over_batch", "grad_logits_eq2_mean_over_batch"),
    ],
)
def test_filtered_entropy_and_its_gradient(case, reduction, loss, gradient):
    logits = case["logits"].clone().requires_grad_()
    entropies = entropy(logits)
    found = filtered_entropy(entropies, confident(entropies, 10), reduction)
    found.backward()
    close(found.detach(), case[loss])
    close(logits.grad, case[gradient])


def test_where_all_is_left_out_there_is_no_loss_instead_of_nan(case):
    """The community's code averages an empty tensor here."""
    assert case["all_filtered_loss_is_nan"]
    assert filtered_entropy(entropy(torch.zeros(4, 10)), torch.zeros(4, dtype=torch.bool)) is None


def test_tents_loss_is_the_mean_entropy(case):
    close(entropy(case["logits"]).mean(), case["loss_tent"])


def test_etas_weights_and_loss(case):
    entropies = entropy(case["logits"])
    kept = confident(entropies, 10)
    weights = eata_weights(entropies, 0.4 * LN10)
    close(weights[kept], case["eata_coeff"])
    close(filtered_entropy(weights * entropies, kept), case["eta_loss"])


def test_etas_weights_are_constants():
    logits = torch.tensor([[3.0, 0.0]], requires_grad=True)
    assert not eata_weights(entropy(logits), 0.5).requires_grad


def test_the_regulariser_is_the_mean_absolute_difference(case):
    close(regularisation(case["reg_xt"] - case["reg_x"]), case["reg_l1_mean"])


def test_cottas_losses(case):
    student, teacher = case["cotta_student"], case["cotta_teacher"]
    close(cross_entropy_of(teacher, student), case["cotta_ce"])
    close(symmetric_cross_entropy(student, teacher), case["cotta_sym"])
    close(symmetric_cross_entropy(teacher, student), case["cotta_sym"])


@pytest.mark.parametrize("prior", [0, 16, 1000000000])
def test_adapt_bn(case, prior):
    bn = nn.BatchNorm2d(3)
    for key in ("weight", "bias", "running_mean", "running_var"):
        getattr(bn, key).data.copy_(case[f"adaptbn_{key}"])
    with FrozenOps(float(prior)), torch.no_grad():
        out = bn.eval()(case["adaptbn_x"])
    close(out, case[f"adaptbn_out_N{prior}"])


def test_entropies_by_hand():
    """Certain, between two classes alike, and between all alike; logits of any size."""
    logits = torch.tensor([[1000.0, 0, 0, 0], [500, 500, -500, -500], [-1e4, -1e4, -1e4, -1e4]])
    assert entropy(logits).tolist() == pytest.approx([0, math.log(2), math.log(4)], abs=1e-6)
    assert confident(entropy(logits), 4, 0.5).tolist() == [True, False, False]  # the margin itself is left out
    assert confident(entropy(logits), 4, 0.51).tolist() == [True, True, False]


def test_half_precision_is_summed_in_single():
    logits = torch.full((1, 1000), 0.1, dtype=torch.float16)
    assert entropy(logits).dtype == torch.float32
    assert entropy(logits).item() == pytest.approx(math.log(1000), rel=1e-6)


def test_pixels_are_rows_of_their_own():
    logits = torch.arange(2 * 3 * 2 * 2, dtype=torch.float32).view(2, 3, 2, 2)
    rows = flat_logits(logits)
    assert rows.shape == (8, 3)
    assert rows[5].tolist() == logits[1, :, 0, 1].tolist()
    assert flat_logits(rows) is rows
