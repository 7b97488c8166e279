"""Operations of a frozen network: the same answers and gradients, with next to nothing kept."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision.ecotta.frozen import FrozenOps
from vision.ecotta.packing import by_numpy, pack_between, unpack
from vision.errors import InputError
from vision.measure import SavedActivations

SHAPE = (3, 6, 7, 5)
CONVOLUTIONS = {
    "plain": nn.Conv2d(6, 8, 3, bias=False),
    "strided": nn.Conv2d(6, 8, 3, stride=2, padding=1),
    "grouped": nn.Conv2d(6, 8, (1, 3), groups=2, padding=(0, 1)),
    "depthwise": nn.Conv2d(6, 6, 3, stride=(2, 1), padding=1, groups=6),
    "dilated": nn.Conv2d(6, 4, 3, dilation=2, padding=2),
    "same": nn.Conv2d(6, 4, 3, padding="same"),
    "transposed": nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1),
    "transposed in groups": nn.ConvTranspose2d(6, 4, 3, groups=2, dilation=2, bias=False),
}
RECTIFIERS = {
    "relu": nn.ReLU(),
    "relu in place": nn.ReLU(inplace=True),
    "relu6": nn.ReLU6(),
    "relu6 in place": nn.ReLU6(inplace=True),
    "hardtanh": nn.Hardtanh(-0.5, 0.25),
    "leaky": nn.LeakyReLU(0.2),
    "leaky in place": nn.LeakyReLU(0.2, inplace=True),
}


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def normalisation(channels: int = 6) -> nn.BatchNorm2d:
    """One in evaluation mode whose running statistics differ from any batch's."""
    bn = nn.BatchNorm2d(channels)
    with torch.no_grad():
        for values, low in ((bn.weight, 0.5), (bn.bias, -1), (bn.running_mean, -1), (bn.running_var, 0.5)):
            values.copy_(low + torch.rand(channels, generator=torch.Generator().manual_seed(7)))
    return bn.eval()


def answers(network: nn.Module, x: Tensor, *options: object) -> tuple[Tensor, Tensor]:
    """What a frozen network gives, and the gradient of its input under a weighted sum; ``options`` of FrozenOps."""
    network.requires_grad_(False)
    x = x.detach().requires_grad_()
    given = x * 1  # what comes before, for a leaf cannot be written
    if options:
        with FrozenOps(*options):
            out = network(given)
    else:
        out = network(given)
    (out * numbers(*out.shape, seed=1)).sum().backward()
    return out.detach(), x.grad


@pytest.mark.parametrize("name", [*CONVOLUTIONS, *RECTIFIERS])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_memsave_is_pytorch(name, memory_format):
    network = {**CONVOLUTIONS, **RECTIFIERS}[name]
    x = 4 * numbers(*SHAPE).to(memory_format=memory_format)
    assert x.max() > 6  # the upper bound of a rectifier matters
    torch.testing.assert_close(answers(network, x, 0.0, "memsave"), answers(network, x))


@pytest.mark.parametrize("prior", [0.0, 16.0, math.inf])
@pytest.mark.parametrize("affine", [True, False])
def test_memsave_normalises_as_eager_with_constant_statistics(prior, affine):
    bn = normalisation() if affine else nn.BatchNorm2d(6, affine=False).eval()
    x = 2 + 3 * numbers(*SHAPE)
    torch.testing.assert_close(answers(bn, x, prior, "memsave"), answers(bn, x, prior, "eager", True))


@pytest.mark.parametrize("prior", [0.0, 16.0, math.inf])
def test_a_whole_network_gives_the_same_gradients(prior):
    network = nn.Sequential(
        nn.Conv2d(6, 8, 3, padding=1, bias=False), normalisation(8), nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, groups=8, stride=2), normalisation(8), nn.ReLU6(inplace=True),
        nn.ConvTranspose2d(8, 4, 2, stride=2), normalisation(4), nn.LeakyReLU(0.1, inplace=True),
    )  # fmt: skip
    x = numbers(*SHAPE)
    torch.testing.assert_close(answers(network, x, prior, "memsave"), answers(network, x, prior, "eager", True))


def test_batch_statistics_and_their_gradients_are_those_of_a_network_in_training():
    bn = normalisation()
    training = copy.deepcopy(bn).train()
    x = numbers(*SHAPE)
    torch.testing.assert_close(answers(bn, x, 0.0, "eager"), answers(training, x))


def test_source_statistics_are_those_of_a_network_in_evaluation():
    bn, x = normalisation(), numbers(*SHAPE)
    torch.testing.assert_close(answers(bn, x, math.inf, "eager"), answers(bn, x))


def test_mixed_statistics_by_hand():
    """Two images of mean 4 and variance 4, of which 2 source images make half: mean 0 and variance 1 there."""
    bn = nn.BatchNorm2d(1, affine=False, eps=0.0).eval()
    x = torch.tensor([2.0, 6.0]).view(2, 1, 1, 1)
    with FrozenOps(2.0):
        out = bn(x)
    assert out.flatten().tolist() == pytest.approx([(2 - 2) / math.sqrt(2.5), (6 - 2) / math.sqrt(2.5)])


def test_gradients_run_through_the_batchs_share_of_mixed_statistics():
    x = numbers(*SHAPE)

    def written_out(x: Tensor) -> Tensor:
        mean = 3 / 7 * x.mean((0, 2, 3)) + 4 / 7 * bn.running_mean
        variance = 3 / 7 * x.var((0, 2, 3), correction=0) + 4 / 7 * bn.running_var
        normal = (x - mean.view(1, -1, 1, 1)) / torch.sqrt(variance + bn.eps).view(1, -1, 1, 1)
        return normal * bn.weight.view(1, -1, 1, 1) + bn.bias.view(1, -1, 1, 1)

    bn = normalisation()
    given = x.clone().requires_grad_()
    (written_out(given) * numbers(*SHAPE, seed=1)).sum().backward()
    torch.testing.assert_close(answers(bn, x, 4.0, "eager")[1], given.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("memory", ["eager", "memsave"])
@pytest.mark.parametrize("prior", [0.0, 16.0, math.inf])
def test_trained_normalisations_get_their_gradients(memory, prior):
    """However little is kept, scale and shift see the exact gradient, through the statistics of the batch too."""
    network = nn.Sequential(normalisation(), nn.ReLU(inplace=True), nn.Conv2d(6, 4, 3), normalisation(4))
    network[2].requires_grad_(False)
    exact = copy.deepcopy(network)
    x = numbers(*SHAPE)
    for net, kept in ((network, memory), (exact, "eager")):
        with FrozenOps(prior, kept):
            out = net(x)
        (out * numbers(*out.shape, seed=1)).sum().backward()
    assert network[0].weight.grad.abs().max() > 0.01
    for found, expected in zip(network.parameters(), exact.parameters(), strict=True):
        if expected.requires_grad:
            torch.testing.assert_close(found.grad, expected.grad)


def test_a_frozen_network_keeps_a_bit_for_each_input_of_a_rectifier_and_a_number_for_each_channel():
    network = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1), normalisation(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
    network.requires_grad_(False)
    x = numbers(*SHAPE).requires_grad_()
    with SavedActivations(network, x) as saved, FrozenOps(0.0, "memsave"):
        network(x)
    assert saved.bytes == 3 * 8 * 7 * 5 / 8 + 8 * 4


@pytest.mark.parametrize("memory", ["eager", "memsave"])
@pytest.mark.parametrize("prior", [0.0, 16.0, math.inf])
def test_buffers_are_never_written(memory, prior):
    network = nn.Sequential(nn.Conv2d(6, 8, 3), normalisation(8), nn.ReLU(inplace=True), normalisation(8))
    before = copy.deepcopy(network.state_dict())
    answers(network, 5 + numbers(*SHAPE), prior, memory)
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("memory", ["eager", "memsave"])
@pytest.mark.parametrize("rectifier", [nn.ReLU, nn.ReLU6, nn.LeakyReLU])
def test_a_blocks_held_input_is_not_overwritten(memory, rectifier):
    """The block begins with a rectifier in place; a hook holds on to what it was given."""
    network = nn.Sequential(nn.Conv2d(6, 6, 1), nn.Sequential(rectifier(inplace=True), nn.Conv2d(6, 4, 3)))
    held = []
    network[1].register_forward_pre_hook(lambda module, args: held.append((args[0], args[0].detach().clone())))
    answers(network, numbers(*SHAPE), 0.0, memory)
    ((given, copied),) = held
    assert (copied < 0).any()
    assert torch.equal(given, copied)


@pytest.mark.parametrize("memory", ["eager", "memsave"])
def test_a_residual_of_what_is_rectified_in_place_has_gradients(memory):
    """Pre-activation: the way round and the rectifier share the normalised features."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn, self.relu, self.conv = normalisation(), nn.ReLU(inplace=True), nn.Conv2d(6, 6, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            out = self.relu(self.bn(x))
            return out + self.conv(out)

    block, x = Block(), numbers(*SHAPE)
    torch.testing.assert_close(answers(block, x, math.inf, memory), answers(block, x))


def test_part_of_a_feature_map_can_be_rectified():
    """Its elements are not neighbours in memory."""

    class Half(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(x.chunk(2, dim=1)[1]) + x[:, :3, :, :]

    torch.testing.assert_close(answers(Half(), numbers(*SHAPE), 0.0, "memsave"), answers(Half(), numbers(*SHAPE)))


def test_one_value_a_channel_has_no_statistics():
    with pytest.raises(InputError, match=r"one value a channel.*prior=16"), FrozenOps():
        normalisation()(numbers(1, 6, 1, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 5, 7), (1, 8, 4, 2), (3, 2, 1, 3)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_bits_come_back(dtype, shape, memory_format):
    x = numbers(*shape).to(dtype).to(memory_format=memory_format)
    packed = pack_between(x, -0.5, 0.5)
    assert packed.dtype == torch.uint8
    assert packed.numel() == math.ceil(x.numel() / 8)
    like = torch.empty_like(x, device="meta")
    assert torch.equal(unpack(packed, like, by_numpy(x)).bool(), (x > -0.5) & (x < 0.5))
