"""The methods that EcoTTA is measured beside: what they share, and the rules of each."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as T
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode

from vision.ecotta.baselines import AdaptBN, BatchStatistics, Source, Tent
from vision.ecotta.cotta import CoTTA
from vision.ecotta.cotta_views import affine, view
from vision.ecotta.eata import EATA, ETA, RDumb
from vision.ecotta.losses import cross_entropy_of, entropy, symmetric_cross_entropy
from vision.ecotta.method import Descent, Method
from vision.errors import InputError
from vision.measure import SavedActivations

CLASSES = 4
FAST = Descent("sgd", 0.05)


class Dictionary(nn.Sequential):
    """Says its logits under a name, as torchvision's segmentation networks do."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": super().forward(x)}


def network(kind: str = "classes") -> nn.Module:
    """With statistics of a source, dropout, and predictions that are partly sure."""
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Dropout(0.5)]
    body += [nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)]
    if kind == "pixels":
        model: nn.Module = Dictionary(*body, nn.Conv2d(8, CLASSES, 1))
    else:
        model = nn.Sequential(*body, nn.Flatten(), nn.Linear(8 * 64, CLASSES))
    with torch.no_grad():
        list(model.parameters())[-2].mul_(4)
        for seed in range(20):
            model(images(100 + seed))
    return model.eval()


def images(seed: int = 0, number: int = 8) -> Tensor:
    return torch.rand(number, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


LEARNING: dict[str, Callable[[nn.Module], Method]] = {
    "tent": lambda model: Tent(model, descent=FAST),
    "tent, adam, mixed, memsave": lambda model: Tent(model, prior=16, memory="memsave"),
    "eta": lambda model: ETA(model, margin=0.9, similarity=0.99, descent=FAST),
    "eata": lambda model: EATA(model, [images(50)], margin=0.9, similarity=0.99, alpha=10, descent=FAST),
    "rdumb": lambda model: RDumb(model, margin=0.9, similarity=0.99, period=4, descent=FAST),
    "cotta": lambda model: CoTTA(model, views=2, momentum=0.9, threshold=1),
}
FIXED: dict[str, Callable[[nn.Module], Method]] = {
    "source": Source,
    "batch statistics": BatchStatistics,
    "adapt bn": AdaptBN,
}
METHODS = {**FIXED, **LEARNING}


def run(method: Method, start: int, number: int) -> Tensor:
    return torch.stack([method.adapt(images(seed)) for seed in range(start, start + number)])


# ------------------------------------------------------------------------------------------------- what they share
@pytest.mark.parametrize("kind", ["classes", "pixels"])
@pytest.mark.parametrize("name", METHODS)
def test_only_what_is_trained_changes(name, kind):
    method = METHODS[name](network(kind))
    trained = {id(parameter) for parameter in method.trained()}
    before = {key: value.clone() for key, value in method.model.state_dict(keep_vars=True).items()}
    logits = run(method, 0, 20)
    assert logits.shape[1:] == ((8, CLASSES) if kind == "classes" else (8, CLASSES, 8, 8))
    assert logits.isfinite().all()
    assert not logits.requires_grad
    changed = {k for k, v in method.model.state_dict(keep_vars=True).items() if not torch.equal(v, before[k])}
    expected = {k for k, v in method.model.state_dict(keep_vars=True).items() if id(v) in trained}
    assert changed == expected
    assert bool(expected) == (name in LEARNING) == method.last.updated
    assert (method.steps, method.images) == (20, 160)


@pytest.mark.parametrize("name", METHODS)
def test_ways_back_are_exact(name):
    method = METHODS[name](network())
    first = run(method, 0, 3)
    there, predicted = method.snapshot(), method.predict(images(3))
    further = run(method, 3, 6)
    method.rollback(there)
    if name != "rdumb":  # whose new start is due at another step now
        assert torch.equal(run(method, 3, 6), further)
    method.reset()
    assert torch.equal(run(method, 0, 3), first)
    assert torch.equal(run(method, 3, 6), further)
    fresh = METHODS[name](network())
    fresh.rollback(there)
    assert torch.equal(fresh.predict(images(3)), predicted)
    fresh.reset()
    assert torch.equal(run(fresh, 0, 3), first)


@pytest.mark.parametrize("name", METHODS)
def test_a_copy_goes_its_own_way(name):
    method = METHODS[name](network())
    run(method, 0, 3)
    twin = copy.deepcopy(method)
    further = run(method, 3, 5)
    assert torch.equal(run(twin, 3, 5), further)
    twin.reset()
    assert torch.equal(method.predict(images(8)), METHODS[name](network()).predict(images(8))) == (name in FIXED)


@pytest.mark.parametrize("name", METHODS)
def test_predictions_are_those_of_the_next_step_and_leave_no_trace(name):
    method = METHODS[name](network())
    run(method, 0, 3)
    before = copy.deepcopy(method.state_dict())
    predicted = method.predict(images(3))
    assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items())
    with torch.inference_mode():
        torch.testing.assert_close(method.adapt(images(3) + 0), predicted)


@pytest.mark.parametrize("name", METHODS)
def test_broken_images_change_nothing(name):
    method = METHODS[name](network())
    run(method, 0, 3)
    before, broken = copy.deepcopy(method.state_dict()), images(3)
    broken[1, 2, 3, 4] = math.nan
    with pytest.raises(InputError, match="NaN or infinite values; nothing was changed"):
        method.adapt(broken)
    assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items())


# ------------------------------------------------------------------------------------------- statistics, and TENT
def test_fixed_methods_are_the_network_with_other_statistics():
    model, x = network(), images()
    training = copy.deepcopy(model).train()
    training[3].eval()
    with torch.no_grad():
        torch.testing.assert_close(Source(copy.deepcopy(model)).adapt(x), model(x))
        torch.testing.assert_close(BatchStatistics(copy.deepcopy(model)).adapt(x), training(x))
    for prior, same in ((0.0, BatchStatistics), (math.inf, Source)):
        found = AdaptBN(copy.deepcopy(model), prior=prior).adapt(x)
        torch.testing.assert_close(found, same(copy.deepcopy(model)).adapt(x))
    assert AdaptBN(model).prior == 16


def test_a_step_of_tent_written_out():
    model, x = network(), images()
    method = Tent(copy.deepcopy(model), descent=Descent("sgd", 0.1))
    model.train()[3].eval()
    logits = model(x)
    loss = entropy(logits).mean()
    loss.backward()
    torch.testing.assert_close(method.adapt(x), logits.detach())  # from before the step
    assert method.last.loss == pytest.approx(loss.item(), rel=1e-5)
    assert (method.last.kept, method.last.updated) == (1.0, True)
    assert len(method.trained()) == 4
    for bn, adapted in ((model[1], method.model[1]), (model[5], method.model[5])):
        torch.testing.assert_close(adapted.weight.detach(), (bn.weight - 0.1 * bn.weight.grad).detach())
        torch.testing.assert_close(adapted.bias.detach(), (bn.bias - 0.1 * bn.bias.grad).detach())


def test_tent_with_memsave_learns_the_same_and_keeps_less():
    found, kept = {}, {}
    for memory in ("eager", "memsave"):
        method = Tent(network(), descent=FAST, memory=memory)
        found[memory] = run(method, 0, 5)
        with SavedActivations(method, images(5)) as saved:
            method.adapt(images(5))
        kept[memory] = saved.bytes
    torch.testing.assert_close(found["memsave"], found["eager"], rtol=1e-4, atol=1e-4)
    assert kept["memsave"] < 0.75 * kept["eager"]


@pytest.mark.parametrize("norm", [nn.GroupNorm(2, 8), nn.LayerNorm([8, 8, 8])])
def test_tent_trains_other_normalisations_where_no_batch_normalisation_can_be(norm):
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8, affine=False), norm, nn.Flatten(), nn.Linear(512, CLASSES)
    )
    method = Tent(model, descent=FAST)
    assert {id(parameter) for parameter in method.trained()} == {id(norm.weight), id(norm.bias)}
    before = norm.weight.detach().clone()
    method.adapt(images())
    assert not torch.equal(norm.weight, before)


def test_single_images_need_the_sources_statistics():
    with pytest.warns(UserWarning, match="batches of 1 give noisy statistics: mix in the source's with prior=16"):
        Tent(network()).adapt(images(number=1))
    assert Tent(network(), prior=16).adapt(images(number=1)).isfinite().all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Tent(nn.Sequential(nn.Conv2d(3, 2, 8))), r"\(Sequential\) has no batch, layer or group normalisation"),
        (lambda: Tent(network(), memory="checkpoint"), "memory must be eager or memsave, got checkpoint"),
        (lambda: ETA(network(), margin=0), "margin must be above 0, got 0"),
        (lambda: ETA(network(), similarity=-1), "similarity must be above 0, got -1"),
        (lambda: RDumb(network(), period=0), "period must be at least 1, got 0"),
        (lambda: EATA(network(), []), "source: there are no images in it"),
        (lambda: EATA(network(), [{"image": 1}]), r"source: batch 0 must be images \(B, 3, H, W\), got dict"),
        (lambda: EATA(network(), [images(), images()[0]]), r"source: batch 1 must be .*, got \(3, 8, 8\)"),
        (lambda: EATA(network(), [images() / 0]), "source: the predictions of batch 0 are not finite"),
        (lambda: EATA(network(), [images()], alpha=-1), "alpha must be at least 0, got -1"),
        (lambda: EATA(network(), [images()], source_images=0), "source_images must be at least 1, got 0"),
        (lambda: CoTTA(network(), threshold=92), r"threshold must be in \[0, 1\], got 92"),
        (lambda: CoTTA(network(), momentum=-0.1), r"momentum must be in \[0, 1\], got -0.1"),
        (lambda: CoTTA(network(), restore=1.5), r"restore must be in \[0, 1\], got 1.5"),
        (lambda: CoTTA(network(), views=0), "views must be at least 1, got 0"),
        (lambda: CoTTA(network(), std=(1, 0, 1)), r"std must be above 0, got \(1, 0, 1\)"),
    ],
)
def test_arguments_out_of_range_are_named(make, message):
    with pytest.raises(InputError, match=message):
        make()


# --------------------------------------------------------------------------------------------- ETA, EATA and RDumb
def test_eta_learns_from_what_is_sure_and_new():
    """Two sure classes, and a prediction that is unsure."""
    a, b, unsure = torch.tensor([[9.0, 0, 0], [0, 9.0, 0], [1.0, 0.9, 0.8]])
    method = ETA(network(), similarity=0.4)

    def learned(*rows: Tensor) -> tuple[float | None, float]:
        stacked = torch.stack(rows)
        loss, kept = method.loss(stacked, entropy(stacked))
        return None if loss is None else loss.item(), kept

    assert learned(unsure, unsure) == (None, 0.0)
    assert method.mean is None
    margin, small = 0.4 * math.log(3), entropy(a[None]).item()
    weighted = pytest.approx(math.exp(margin - small) * small, rel=1e-5)
    assert learned(a, unsure, a, a) == (weighted, 0.75)  # nothing was seen before, so all that is sure is new
    torch.testing.assert_close(method.mean, a.softmax(0))
    assert learned(a, b, unsure, a) == (weighted, 0.25)
    torch.testing.assert_close(method.mean, 0.9 * a.softmax(0) + 0.1 * b.softmax(0))
    before = method.mean.clone()
    assert learned(a, a) == (None, 0.0)
    assert torch.equal(method.mean, before)
    for _ in range(20):
        learned(b)
    assert learned(b) == (None, 0.0)  # by now it has been seen often enough


@pytest.mark.parametrize("name", ["eta", "eata", "rdumb"])
def test_nothing_sure_is_nothing_learned(name):
    model = network()
    nn.init.zeros_(model[-1].weight)
    nn.init.zeros_(model[-1].bias)
    method = LEARNING[name](model)
    before = [parameter.detach().clone() for parameter in method.trained()]
    assert torch.equal(run(method, 0, 3), torch.zeros(3, 8, CLASSES))
    assert (method.last.kept, method.last.updated) == (0.0, False)
    assert method.last.entropy == pytest.approx(math.log(CLASSES))
    assert all(map(torch.equal, method.trained(), before))


def test_eatas_fishers_are_squared_gradients_averaged_over_batches():
    model = network()
    batches = [images(1), images(2), images(3)]
    method = EATA(copy.deepcopy(model), iter(batches), source_images=12)
    model.train()[3].eval()
    expected = torch.zeros(32)
    for x in (batches[0], batches[1][:4]):  # 12 images, and no more of the source
        logits = model(x)
        loss = F.cross_entropy(logits, logits.argmax(dim=1))
        norms = [model[1].weight, model[1].bias, model[5].weight, model[5].bias]
        expected += torch.cat(torch.autograd.grad(loss, norms)).square() / 2
    assert expected.max() > 1e-4
    torch.testing.assert_close(method.fisher, expected, rtol=1e-4, atol=1e-9)
    assert method.penalty() == 0
    with torch.no_grad():
        method.model[5].bias[3] += 2
    assert method.penalty().item() == pytest.approx(4 * method.fisher[-5].item())


def test_eatas_penalty_holds_parameters_back():
    moved = []
    for alpha in (0.0, 1000.0):
        options = {"margin": 0.9, "similarity": 0.99, "descent": Descent("sgd", 1e-3)}
        method = EATA(network(), [images(50)], alpha=alpha, **options)
        run(method, 0, 20)
        moved.append(method.penalty().item())
    assert moved[1] < moved[0] / 2


def test_rdumb_is_eta_that_starts_anew():
    options = {"margin": 0.9, "similarity": 0.99, "descent": FAST}
    rdumb, eta = RDumb(network(), period=3, **options), ETA(network(), **options)
    assert torch.equal(run(rdumb, 0, 3), run(eta, 0, 3))
    later = run(rdumb, 3, 3)
    assert not torch.equal(later, run(eta, 3, 3))
    assert torch.equal(later, run(ETA(network(), **options), 3, 3))
    assert rdumb.steps == 6


# ------------------------------------------------------------------------------------------------------------ CoTTA
@pytest.mark.parametrize("symmetric", [False, True])
def test_a_step_of_cotta_written_out(symmetric):
    model, x = network(), images()
    source = [parameter.detach().clone() for parameter in model.parameters()]
    method = CoTTA(model, threshold=1, views=3, momentum=0.75, restore=0, symmetric=symmetric, seed=5)
    plain, random = BatchStatistics(network()), torch.Generator().manual_seed(5)
    teacher = sum(plain.predict(view(x, random)) for _ in range(3)) / 3
    torch.testing.assert_close(method.adapt(x), teacher)
    student = plain.predict(x)
    losses = symmetric_cross_entropy(student, teacher) if symmetric else cross_entropy_of(teacher, student)
    assert method.last.loss == pytest.approx(losses.mean().item(), rel=1e-5)
    for before, after, averaged in zip(source, model.parameters(), method.teacher.parameters(), strict=True):
        assert not torch.equal(after, before)
        torch.testing.assert_close(averaged.detach(), 0.75 * before + 0.25 * after.detach())


def test_cotta_makes_views_only_where_the_source_is_unsure():
    x, plain = images(), BatchStatistics(network())
    confidence = plain.predict(x).softmax(dim=1).amax(dim=1).mean().item()
    sure, unsure = (CoTTA(network(), threshold=confidence + d, views=2).adapt(x) for d in (-0.01, 0.01))
    torch.testing.assert_close(sure, plain.predict(x))
    assert (unsure - sure).abs().max() > 0.1


def test_cotta_puts_weights_back():
    found = {}
    for restore in (0.0, 0.3, 1.0):
        method = CoTTA(network(), threshold=1, views=1, restore=restore, descent=Descent("sgd", 1.0))
        method.adapt(images())
        source = torch.cat([parameter.flatten() for parameter in method.source.parameters()])
        found[restore] = torch.cat([parameter.flatten() for parameter in method.trained()]) == source
    learned = ~found[0.0]  # some have no gradient
    assert learned.sum() > 2000
    assert found[0.3][learned].float().mean().item() == pytest.approx(0.3, abs=0.03)
    assert found[1.0].all()


def test_cotta_holds_three_sets_of_weights():
    weights = sum(parameter.numel() for parameter in network().parameters())
    method = CoTTA(network())
    assert sum(parameter.numel() for parameter in method.parameters()) == (1 + CoTTA.copies) * weights
    assert sum(parameter.numel() for parameter in method.trained()) == weights


def test_cottas_randomness_is_the_seeds():
    found = [run(CoTTA(network(), threshold=1, views=2, seed=seed), 0, 3) for seed in (1, 1, 2)]
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2])


def test_cottas_views_are_of_images_before_their_normalisation():
    class Normalised(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return self.inner((x - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1))

    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.4])
    x = images()
    inside = CoTTA(Normalised(network()), threshold=1, views=2).adapt(x)
    normalised = (x - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    outside = CoTTA(network(), threshold=1, views=2, mean=mean.tolist(), std=std.tolist()).adapt(normalised)
    torch.testing.assert_close(inside, outside, rtol=1e-3, atol=1e-3)


def test_cottas_predictions_of_pixels_stay_where_they_are():
    model = nn.Conv2d(3, 2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[-1.0, -1, -1], [1, 1, 1]]).view(2, 3, 1, 1))
    x = torch.full((8, 3, 8, 8), 0.02)
    x[:, :, 1, 6] = 1
    logits = CoTTA(model, threshold=1).adapt(x)
    assert (logits.diff(dim=1)[:, 0].flatten(1).argmax(dim=1) == 8 + 6).all()


# ------------------------------------------------------------------------------------------------------------ views
def test_views_are_images_changed_alike():
    x = images(number=1).expand(3, 3, 8, 8).contiguous()
    for seed in range(20):
        seen = view(x, torch.Generator().manual_seed(seed))
        assert seen.shape == x.shape
        assert seen.min() >= 0
        assert seen.max() <= 1
        assert (seen[0] - x[0]).abs().max() > 0.05
        assert (seen[0] - seen[1]).abs().max() < 0.05  # the noise's part
        assert torch.equal(seen, view(x, torch.Generator().manual_seed(seed)))


def test_every_other_view_is_mirrored_unless_that_is_ruled_out():
    """Half an image is bright, and stays where it is or goes to the other side."""
    x = torch.zeros(1, 3, 8, 8)
    x[..., 4:] = 1

    def mirrored(seed: int, **options: bool) -> bool:
        seen = view(x, torch.Generator().manual_seed(seed), **options)
        return bool(seen[..., :2].mean() > seen[..., 6:].mean())

    assert sum(mirrored(seed) for seed in range(100)) in range(35, 66)
    assert not any(mirrored(seed, mirrored=False) for seed in range(100))
    assert not any(mirrored(seed, moved=False) for seed in range(100))


@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0, 3.0])
@pytest.mark.parametrize("channels", [1, 3])
def test_views_of_flat_images_are_finite(value, channels):
    for seed in range(10):
        assert view(torch.full((2, channels, 8, 6), value), torch.Generator().manual_seed(seed)).isfinite().all()


def test_affine_is_torchvisions_within_the_image_and_repeats_the_edge_without():
    x = torch.rand(2, 3, 20, 32, generator=torch.Generator().manual_seed(0))
    found = affine(x, 10.0, (2 / 32, 1 / 20), 1.05)
    expected = T.affine(x, 10.0, [2, 1], 1.05, [0.0, 0.0], interpolation=InterpolationMode.BILINEAR)
    torch.testing.assert_close(found[..., 6:14, 8:24], expected[..., 6:14, 8:24], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(affine(torch.full_like(x, 0.7), 15.0, (0.1, 0.1), 0.9), torch.full_like(x, 0.7))
    torch.testing.assert_close(affine(x, 0.0, (0.0, 0.0), 1.0), x)
