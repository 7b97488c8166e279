"""Training, measuring and resuming a video network, with its spatial part frozen and without."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import timm
import torch
import torch.nn.functional as F
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger

from tasks import VideoClassifier
from tasks.callbacks import PredictionTable
from tasks.vivit import FrozenPass
from tests.tasks.clips import ONE_SET, SIZE, TWO_SETS, Clips, batch_of, moving_squares, noise, random_labels
from tests.tasks.quick import trainer
from vision.errors import InputError
from vision.vivit.checkpoint import load_network
from vision.vivit.model import AdapterOptions, TemporalOptions
from vision.vivit.scores import draw_share
from vision.vivit.start import Start

OPTIONS: dict[str, Any] = {
    "backbone": "timm:test_vit",
    "backbone_options": {"patch_size": 8, "depth": 2},
    "adapter": AdapterOptions("grid", width=8),
    "temporal": TemporalOptions(1),
    "start": Start(spatial="random"),
    "optimizer": lambda groups: torch.optim.AdamW(groups, lr=3e-3, weight_decay=0.05),
}


def made(**options) -> VideoClassifier:
    pl.seed_everything(0, verbose=False)
    return VideoClassifier(**{**OPTIONS, **options})


def fit(folder, data, task=None, trainer_options=None, **options) -> tuple[VideoClassifier, pl.Trainer]:
    task = task if task is not None else made(**options)
    runner = trainer(folder, **{"limit_val_batches": 0, **(trainer_options or {})})
    runner.fit(task, datamodule=data)
    return task, runner


def two_sets(count: int = 16, sizes: list[int] | int = 8, views: int = 1) -> Clips:
    return Clips(noise(count, views), random_labels(count, TWO_SETS), TWO_SETS, sizes)


class Stir(pl.Callback):
    """Weights that all have an effect, from the first step on; and a copy of them."""

    def on_fit_start(self, trainer, pl_module):
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in pl_module.model.parameters():
                parameter += torch.randn(parameter.shape, generator=generator).to(parameter) * 0.05
        self.weights = copy_of(pl_module.model)


def copy_of(module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def same(found, expected) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(value, expected[key]) for key, value in found.items())


def first_loss(folder, data, **options) -> tuple[float, VideoClassifier]:
    """Of one batch with stirred weights, which are not changed."""
    options = {"optimizer": lambda groups: torch.optim.SGD(groups, lr=0.0), **options}
    settings = {"max_steps": 1, "callbacks": [Stir()], "limit_train_batches": 1}
    task, runner = fit(folder, data, trainer_options=settings, **options)
    return float(runner.callback_metrics["train_loss"]), task


@torch.no_grad()
def logits_of(task: VideoClassifier, video: torch.Tensor) -> torch.Tensor:
    return task.model.eval()(video)


# ------------------------------------------------------------------------------------------------------- training
@pytest.mark.parametrize(("freeze", "count", "rate", "epochs"), [("spatial", 128, 1e-3, 20), ("none", 64, 3e-3, 15)])
def test_it_learns_what_only_the_order_of_the_frames_tells(freeze, count, rate, epochs, tmp_path):
    options = {"freeze": freeze, "optimizer": lambda groups: torch.optim.AdamW(groups, lr=rate)}
    data = Clips(*moving_squares(count), ONE_SET, sizes=16)
    task, runner = fit(tmp_path, data, trainer_options={"max_epochs": epochs}, **options)
    video, labels = moving_squares(64, seed=1)
    found = logits_of(task, video[:, 0]).argmax(dim=1)
    assert float((found == labels[:, 0]).float().mean()) > 0.9
    backwards = logits_of(task, video[:, 0].flip(1)).argmax(dim=1)
    assert float((backwards == found).float().mean()) < 0.1
    assert float(runner.callback_metrics["train_loss"]) < 0.3


def test_frozen_weights_pass_through_a_training_unchanged(tmp_path):
    stir = Stir()
    settings = {"callbacks": [stir], "gradient_clip_val": 0.1, "max_epochs": 2, "limit_val_batches": 1}
    task, runner = fit(tmp_path, two_sets(), trainer_options=settings, layer_drop=0.5)
    found = copy_of(task.model)
    still = {name for name, value in found.items() if torch.equal(value, stir.weights[name])}
    assert still == {name for name in found if name.startswith("spatial.")}
    assert all(parameter.grad is None for parameter in task.model.spatial.parameters())
    groups = runner.optimizers[0].param_groups
    ours = {id(parameter): name for name, parameter in task.model.named_parameters()}
    decayed, spared = ({ours[id(parameter)] for parameter in group["params"]} for group in groups)
    assert [group["weight_decay"] for group in groups] == [0.05, 0.0]
    assert not any(name.startswith("spatial.") for name in decayed | spared)
    assert {"temporal.pos_embed", "temporal.cls_token", "adapter.reduce.bias"} <= spared
    assert {"adapter.reduce.weight", "head.weight"} <= decayed
    assert not any(module.training for module in task.model.spatial.vit.modules())


def test_last_blocks_are_trained_with_the_rest(tmp_path):
    stir = Stir()
    task, _ = fit(tmp_path, two_sets(), trained_blocks=1, trainer_options={"callbacks": [stir]})
    moved = {name for name, value in copy_of(task.model).items() if not torch.equal(value, stir.weights[name])}
    spatial = {name for name in moved if name.startswith("spatial.")}
    assert spatial
    assert all(name.startswith(("spatial.vit.blocks.1.", "spatial.vit.norm.")) for name in spatial)


class Unfreeze(pl.Callback):
    """As callbacks of fine-tuning do."""

    def on_fit_start(self, trainer, pl_module):
        pl_module.model.spatial.vit.patch_embed.requires_grad_(True)


def test_a_trained_embedding_before_frozen_blocks_is_reported(tmp_path):
    with pytest.raises(
        InputError, match=r"trained parameters lie before frozen blocks.*patch_embed\.proj\.weight"
    ) as e:
        fit(tmp_path, two_sets(), tubelet=2, trainer_options={"callbacks": [Unfreeze()]})
    assert "\n" not in str(e.value)


# --------------------------------------------------------------------------------------------------------- the loss
def test_loss_of_several_label_sets_is_their_mean(tmp_path):
    data = two_sets(8)
    loss, task = first_loss(tmp_path, data)
    logits, labels = logits_of(task, data.batches[0]["video"][:, 0]), data.batches[0]["labels"]
    noun, verb = F.cross_entropy(logits[:, :3], labels[:, 0]), F.cross_entropy(logits[:, 3:], labels[:, 1])
    assert loss == pytest.approx(float(noun + verb) / 2, rel=1e-5)
    assert abs(float(noun - verb)) > 0.1


def test_missing_labels_count_for_nothing(tmp_path):
    data = two_sets(8)
    labels = data.batches[0]["labels"]
    labels[2:, 0], labels[0, 1] = -1, -1
    loss, task = first_loss(tmp_path, data)
    logits = logits_of(task, data.batches[0]["video"][:, 0])
    noun, verb = F.cross_entropy(logits[:2, :3], labels[:2, 0]), F.cross_entropy(logits[1:, 3:], labels[1:, 1])
    assert loss == pytest.approx(float(noun + verb) / 2, rel=1e-5)
    labels[:, 0] = -1
    assert first_loss(tmp_path, data)[0] == pytest.approx(float(verb) / 2, rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_mixup_by_hand(smoothing, tmp_path):
    """One share for the batch, clip i with clip B-1-i, smoothed once; an odd one out is mixed with itself."""
    data = Clips(noise(5), torch.tensor([[0], [1], [1], [0], [0]]), ONE_SET, sizes=5)
    loss, task = first_loss(tmp_path, data, mixup=0.8, label_smoothing=smoothing)
    share = draw_share(0.8, 0)
    assert 0.05 < share < 0.95
    pixels = (data.batches[0]["video"][:, 0].float() / 255 - 0.5) / 0.5
    logits = logits_of(task, share * pixels + (1 - share) * pixels.flip(0))
    one, other = torch.tensor([0, 1, 1, 0, 0]), torch.tensor([0, 0, 1, 1, 0])
    losses = [F.cross_entropy(logits, labels, label_smoothing=smoothing) for labels in (one, other)]
    assert loss == pytest.approx(share * float(losses[0]) + (1 - share) * float(losses[1]), rel=1e-5)
    assert abs(float(losses[0] - losses[1])) > 1e-3


def test_label_smoothing_is_of_the_training_alone(tmp_path):
    data = Clips(noise(8), random_labels(8, ONE_SET), ONE_SET)
    loss, task = first_loss(tmp_path, data, label_smoothing=0.2)
    logits, labels = logits_of(task, data.batches[0]["video"][:, 0]), data.batches[0]["labels"][:, 0]
    assert loss == pytest.approx(float(F.cross_entropy(logits, labels, label_smoothing=0.2)), rel=1e-5)
    (measured,) = trainer(tmp_path).validate(task, datamodule=data, verbose=False)
    assert measured["val_loss"] == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-5)


# ------------------------------------------------------------------------------------------------------- evaluation
def evaluated(task, data, folder) -> dict[str, float]:
    (measured,) = trainer(folder).validate(task, datamodule=data, verbose=False)
    return measured


def test_measures_of_pairs(tmp_path):
    data = two_sets(40)
    _, task = first_loss(tmp_path, data)
    data.batches[4]["labels"][:4] = torch.tensor([[-1, 2], [1, -1], [-1, -1], [0, 3]])
    found = evaluated(task, data, tmp_path)
    video = torch.cat([batch["video"][:, 0] for batch in data.batches])
    labels = torch.cat([batch["labels"] for batch in data.batches])
    logits = logits_of(task, video)
    noun, verb = logits[:, :3].softmax(1), logits[:, 3:].softmax(1)
    both, best = [], []
    for first, second, (true_noun, true_verb) in zip(noun, verb, labels.tolist(), strict=True):
        if min(true_noun, true_verb) < 0:
            continue
        both.append(int(first.argmax()) == true_noun and int(second.argmax()) == true_verb)
        pairs = sorted(((float(first[a] * second[b]), a, b) for a in range(3) for b in range(4)), reverse=True)
        best.append((true_noun, true_verb) in [pair[1:] for pair in pairs[:5]])
    assert len(both) == 37
    assert found["val_top1"] == pytest.approx(sum(both) / 37)
    assert found["val_top5"] == pytest.approx(sum(best) / 37)
    assert 0 < found["val_top1"] < found["val_top5"] < 1
    losses = []
    for name, of, column in (("noun", logits[:, :3], labels[:, 0]), ("verb", logits[:, 3:], labels[:, 1])):
        known = column >= 0
        right = (of.argmax(dim=1) == column)[known].float().mean()
        assert found[f"val_{name}_top1"] == pytest.approx(float(right))
        losses.append(float(F.cross_entropy(of[known], column[known])))
        assert found[f"val_{name}_loss"] == pytest.approx(losses[-1], rel=1e-5)
    assert found["val_loss"] == pytest.approx(sum(losses) / 2, rel=1e-5)


def test_four_pairs_have_no_five_best(tmp_path):
    schema = {"noun": ["cup", "pan"], "verb": ["take", "put"]}
    _, task = first_loss(tmp_path, Clips(noise(8), random_labels(8, schema), schema))
    found = evaluated(task, Clips(noise(8), random_labels(8, schema), schema), tmp_path)
    assert "val_top1" in found
    assert "val_top5" not in found


@pytest.mark.parametrize("score", ["logits", "softmax"])
def test_views_are_averaged_whatever_the_batches(score, tmp_path):
    video, labels = noise(10, views=3), random_labels(10, ONE_SET)
    _, task = first_loss(tmp_path, Clips(video, labels, ONE_SET, 5), view_score=score)
    each = logits_of(task, video.flatten(0, 1)).unflatten(0, (10, 3))
    mean = each.mean(dim=1) if score == "logits" else each.softmax(dim=2).mean(dim=1).log()
    expected = float(F.cross_entropy(mean, labels[:, 0]))
    for sizes in ([10], [4, 4, 2], [1] * 10, [9, 1]):
        found = evaluated(task, Clips(video, labels, ONE_SET, sizes), tmp_path)
        assert found["val_loss"] == pytest.approx(expected, rel=1e-5)
        assert found["val_top1"] == pytest.approx(float((mean.argmax(dim=1) == labels[:, 0]).float().mean()))


def test_batches_and_sets_without_anything_to_measure(tmp_path):
    """All videos of a batch unreadable; no label of a set anywhere."""
    data = two_sets(16, sizes=[8, 0, 8])
    _, task = first_loss(tmp_path, data)
    assert evaluated(task, data, tmp_path) == pytest.approx(evaluated(task, two_sets(16), tmp_path))
    for batch in data.batches:
        batch["labels"][:, 1] = -1
    found = evaluated(task, data, tmp_path)
    assert found["val_loss"] == found["val_noun_loss"]
    assert not any("verb" in name or name == "val_top1" for name in found)


def test_a_training_batch_of_which_nothing_could_be_read_changes_nothing(tmp_path):
    options = {"optimizer": lambda groups: torch.optim.SGD(groups, lr=0.1)}
    whole, gappy = (two_sets(16, sizes=sizes) for sizes in ([8, 8], [8, 0, 8]))
    found = [copy_of(fit(tmp_path, data, **options)[0].model) for data in (whole, gappy)]
    assert same(*found)


def test_predictions_are_written_a_row_a_video(tmp_path):
    data = two_sets(6, sizes=[4, 0, 2], views=2)
    _, task = first_loss(tmp_path, two_sets(8))
    settings = {"logger": CSVLogger(str(tmp_path), name="run"), "callbacks": [PredictionTable()]}
    runner = trainer(tmp_path, **settings)
    runner.predict(task, datamodule=data, return_predictions=False)
    (file,) = tmp_path.rglob("predictions.csv")
    with file.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["path"] for row in rows] == [f"clip_{i}.mp4" for i in range(6)]
    places = [f"{name}_{place}" for name, count in (("noun", 3), ("verb", 4)) for place in range(1, count + 1)]
    assert list(rows[0]) == ["path", *(column for place in places for column in (place, f"{place}_probability"))]
    video = torch.cat([batch["video"] for batch in data.batches])
    logits = logits_of(task, video.flatten(0, 1)).unflatten(0, (6, 2)).mean(dim=1)
    for row, of in zip(rows, logits, strict=True):
        for name, part in (("noun", of[:3]), ("verb", of[3:])):
            ranked = part.softmax(dim=0).sort(descending=True)
            for place, (value, index) in enumerate(zip(*ranked, strict=True), 1):
                assert row[f"{name}_{place}"] == TWO_SETS[name][int(index)]
                assert row[f"{name}_{place}_probability"] == f"{float(value):.4f}"


# --------------------------------------------------------------------------------------------------- frozen features
@pytest.mark.parametrize("adapter", ["grid", "grid_residual", "conv3d"])
def test_training_on_features_is_training_on_clips(adapter, tmp_path):
    data = two_sets()
    options = {"adapter": AdapterOptions(adapter, width=8), "tubelet": 2}
    by_clips, _ = fit(tmp_path, data, trainer_options={"max_epochs": 2}, **options)
    fresh = made(**options)
    fit(tmp_path, data, fresh, trainer_options={"max_steps": 0})
    for batch in data.batches:
        video = batch.pop("video")
        batch["features"] = fresh.frozen_features(video.flatten(0, 1)).unflatten(0, video.shape[:2])
        assert not batch["features"].requires_grad
    by_features, _ = fit(tmp_path, data, trainer_options={"max_epochs": 2}, **options)
    for name, value in by_features.model.state_dict().items():
        torch.testing.assert_close(value, by_clips.model.state_dict()[name], rtol=1e-5, atol=1e-5, msg=name)
    assert evaluated(by_features, data, tmp_path) == pytest.approx(evaluated(by_clips, two_sets(), tmp_path), rel=1e-4)


def test_what_features_depend_on(tmp_path):
    def fields(**options) -> dict[str, Any]:
        task, _ = fit(tmp_path, two_sets(), trainer_options={"max_steps": 0}, **options)
        return task.cache_fields()

    base = fields()
    assert base == fields(temporal=TemporalOptions(2), adapter=AdapterOptions("grid", width=4), label_smoothing=0.1)
    for options in (
        {"adapter": AdapterOptions("grid", grid=2)},
        {"adapter": AdapterOptions("grid_residual", grid=4)},
        {"adapter": AdapterOptions("frame")},
        {"sampled_frames": 2},
        {"tubelet": 2},
        {"frozen_pass": FrozenPass(bfloat16=True)},
        {"backbone_options": {"patch_size": 8, "depth": 1}},
    ):
        assert fields(**options) != base, options
    task = made()
    fit(tmp_path, two_sets(), task, trainer_options={"max_steps": 0})
    with torch.no_grad():
        task.model.spatial.vit.blocks[1].mlp.fc2.bias[3] += 1e-3
    assert {name for name, value in task.cache_fields().items() if value != base[name]} == {"weights"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"freeze": "none"}, "data.cache needs a frozen spatial part: set model.freeze to spatial"),
        ({"trained_blocks": 1}, "data.cache needs a frozen spatial part: .* trained_blocks to 0"),
        ({"mixup": 0.2}, "data.cache holds features, model.mixup mixes pixels: leave out one of them"),
    ],
)
def test_what_cannot_be_cached(options, words, tmp_path):
    task, _ = fit(tmp_path, two_sets(), trainer_options={"max_steps": 0}, **options)
    with pytest.raises(InputError, match=words):
        task.cache_fields()


# ------------------------------------------------------------------------------------------------------ checkpoints
@pytest.fixture
def source(tmp_path) -> Path:
    """Weights of an image transformer."""
    torch.manual_seed(3)
    settings = {"num_classes": 0, "img_size": SIZE, "patch_size": 8, "depth": 2}
    torch.save(timm.create_model("test_vit", **settings).state_dict(), tmp_path / "vit.pth")
    return tmp_path / "vit.pth"


def saved(folder, name="net.ckpt", **options) -> tuple[VideoClassifier, Path]:
    task, runner = fit(folder, two_sets(), **options)
    runner.save_checkpoint(folder / name)
    return task.eval(), folder / name


def agrees(network, task, count: int = 3) -> bool:
    video = noise(count, seed=9)[:, 0]
    with torch.no_grad():
        return torch.equal(network(video), task.model(video))


def test_a_checkpoint_says_everything_itself(tmp_path):
    task, path = saved(tmp_path, tubelet=2)
    network, record = load_network(path)
    assert agrees(network, task)
    assert record.schema.as_dict() == task.schema.as_dict()
    assert (record.stride, record.preprocessing.size) == (2, SIZE)
    again = VideoClassifier.load_from_checkpoint(path).eval()
    assert agrees(again, task)
    assert evaluated(again, two_sets(), tmp_path) == evaluated(task, two_sets(), tmp_path)
    assert again.record == task.record


@pytest.mark.parametrize("inflation", ["central_frame", "average"])
def test_a_checkpoint_without_the_frozen_weights(inflation, source, tmp_path):
    start = Start(spatial=str(source), inflation=inflation)
    whole, large = saved(tmp_path, "whole.ckpt", start=start, tubelet=2)
    task, path = saved(tmp_path, "part.ckpt", start=start, tubelet=2, save_frozen=False)
    assert path.stat().st_size < 0.8 * large.stat().st_size
    state = torch.load(path, weights_only=True)["state_dict"]
    assert state
    assert not any(key.startswith("model.spatial") for key in state)
    assert agrees(load_network(path)[0], task)
    assert agrees(load_network(path)[0], whole)
    assert agrees(VideoClassifier.load_from_checkpoint(path).eval(), task)

    runner = trainer(tmp_path, max_steps=0)
    runner.fit(VideoClassifier.load_from_checkpoint(path, save_frozen=False), datamodule=two_sets())
    runner.save_checkpoint(tmp_path / "later.ckpt")
    assert agrees(load_network(tmp_path / "later.ckpt")[0], task), "it still says where the weights came from"

    moved = source.rename(tmp_path / "moved.pth")
    with pytest.raises(InputError, match=r"part\.ckpt: .* came from .*vit\.pth, and that is not there; .*--spatial"):
        load_network(path)
    assert agrees(load_network(path, moved)[0], task)
    for own in (
        VideoClassifier.load_from_checkpoint(path, start=Start(spatial=str(moved))),
        made(start=Start(str(moved)), tubelet=2),
    ):
        runner = trainer(tmp_path)
        runner.test(own, datamodule=two_sets(), ckpt_path=path, verbose=False, weights_only=True)
        assert agrees(own.eval(), task)
        runner.save_checkpoint(tmp_path / "again.ckpt")
    torch.save({key: value + 1e-3 for key, value in torch.load(moved).items()}, moved)
    with pytest.raises(InputError, match=r"part\.ckpt: was trained with another frozen spatial part than that of") as e:
        load_network(path, moved)
    assert "\n" not in str(e.value)


def test_weights_that_no_file_has_are_always_saved(tmp_path):
    with pytest.raises(InputError, match=r"save_frozen must be true where start\.spatial is random"):
        made(save_frozen=False)
    assert agrees(
        load_network(saved(tmp_path, freeze="none")[1])[0],
        VideoClassifier.load_from_checkpoint(tmp_path / "net.ckpt").eval(),
    )


@pytest.mark.parametrize("save_frozen", [True, False])
def test_a_resumed_training_ends_where_an_uninterrupted_one_does(save_frozen, source, tmp_path):
    """Three epochs, and two plus one: to the bit, with shares of Mixup that follow from the step."""
    options = {"start": Start(spatial=str(source)), "save_frozen": save_frozen, "mixup": 0.5}
    whole, _ = fit(tmp_path, two_sets(), trainer_options={"max_epochs": 3}, **options)
    _, first = fit(tmp_path, two_sets(), trainer_options={"max_epochs": 2}, **options)
    first.save_checkpoint(tmp_path / "two.ckpt")
    if save_frozen:
        source.unlink()  # all weights are in the checkpoint
    second = made(**options)
    torch.manual_seed(99)
    trainer(tmp_path, max_epochs=3, limit_val_batches=0).fit(
        second, datamodule=two_sets(), ckpt_path=tmp_path / "two.ckpt", weights_only=True
    )
    assert same(copy_of(second.model), copy_of(whole.model))
    if save_frozen:
        with pytest.raises(InputError, match=r"vit\.pth: no such checkpoint file"):
            fit(tmp_path, two_sets(), **options)


def test_the_start_is_made_by_the_training_whatever_ran_before(source, tmp_path):
    task = made(start=Start(spatial=str(source)))
    evaluated(task, two_sets(), tmp_path)
    fit(tmp_path, two_sets(), task)
    expected = torch.load(source, weights_only=True)
    assert same(copy_of(task.model.spatial.vit), expected)


def test_a_loaded_network_is_trained_on_from_where_it_is(source, tmp_path):
    task, path = saved(tmp_path)
    again = VideoClassifier.load_from_checkpoint(path, **{**OPTIONS, "start": Start(spatial=str(source))})
    fit(tmp_path, two_sets(), again)
    assert same(copy_of(again.model.spatial), copy_of(task.model.spatial))


def test_two_stages(tmp_path, capsys):
    """Four frames end to end, then eight frozen; what is taken and what is left is said."""
    first, path = saved(tmp_path, "first.ckpt", freeze="none")
    data = Clips(noise(8, frames=8), random_labels(8, TWO_SETS), TWO_SETS)
    start = Start(spatial=str(path), temporal=str(path))
    second, _ = fit(tmp_path, data, start=start, trainer_options={"max_steps": 0})
    assert same(copy_of(second.model.spatial), copy_of(first.model.spatial))
    assert same(copy_of(second.model.head), copy_of(first.model.head))
    assert torch.equal(second.model.temporal.pos_embed[:, [0, 1, 8]], first.model.temporal.pos_embed[:, [0, 1, 4]])
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("vision: ")]
    assert [line.split(":")[1].strip() for line in said] == [
        "spatial part",
        "temporal part and head",
        f"not taken of {path}",
    ]


def test_checkpoints_of_something_else_are_refused(tmp_path):
    _, path = saved(tmp_path)
    other = Clips(noise(8), random_labels(8, ONE_SET), ONE_SET)
    longer = Clips(noise(8, frames=6), random_labels(8, TWO_SETS), TWO_SETS)
    for task, data, words in (
        (made(), other, "the checkpoint has other classes than the data"),
        (made(), longer, "the checkpoint has frames 4, the configuration 6"),
        (made(pool="mean"), two_sets(), "the checkpoint has pool token, the configuration mean"),
        (VideoClassifier.load_from_checkpoint(path), other, "the classes of the network are other ones than those of"),
    ):
        with pytest.raises(InputError, match=words):
            trainer(tmp_path).test(task, datamodule=data, ckpt_path=path, verbose=False, weights_only=True)
    torch.save({**torch.load(path, weights_only=True), "vivit": {"config": {}}}, path)
    with pytest.raises(InputError, match="what it says of its network is unusable"):
        load_network(path)
    content = {key: value for key, value in torch.load(path, weights_only=True).items() if key != "vivit"}
    torch.save(content, path)
    with pytest.raises(
        InputError, match=r"the checkpoint is not one of VideoClassifier; start from it with model\.start"
    ):
        VideoClassifier.load_from_checkpoint(path)
    with pytest.raises(InputError, match=r"net\.ckpt: not a checkpoint of a video network"):
        load_network(path)


def test_the_best_checkpoint_is_chosen_by_top1(tmp_path):
    best = ModelCheckpoint(tmp_path, "best", monitor=VideoClassifier.monitor[0], mode=VideoClassifier.monitor[1])
    settings = {"callbacks": [best], "enable_checkpointing": True, "limit_val_batches": 1.0}
    _, runner = fit(tmp_path, two_sets(), trainer_options=settings)
    assert best.best_model_score == runner.callback_metrics["val_top1"]
    load_network(best.best_model_path)


# --------------------------------------------------------------------------------------------------- other settings
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_other_precisions(precision, tmp_path):
    options = {"mixup": 0.5, "tubelet": 2, "adapter": AdapterOptions("grid_residual", width=8)}
    settings = {"precision": precision, "limit_val_batches": 1, "gradient_clip_val": 1.0}
    task, runner = fit(tmp_path, two_sets(), trainer_options=settings, **options)
    assert all(torch.isfinite(value).all() for value in task.model.parameters())
    assert torch.isfinite(runner.callback_metrics["val_loss"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"label_smoothing": 1.5}, r"label_smoothing must be in \[0, 1\], got 1.5"),
        ({"mixup": -1.0}, "mixup must be at least 0, got -1"),
        ({"trained_blocks": 1, "freeze": "none"}, "trained_blocks is of a frozen spatial part: set freeze to spatial"),
        ({"trained_blocks": 3}, r"trained_blocks must be in 0 \.\.\. 2, got 3"),
        ({"backbone": "timm:test_vti"}, r"no network called 'timm:test_vti' \(did you mean"),
        ({"tubelet": 5}, "a clip of 4 frames is shorter than a tubelet of 5"),
        ({"start": Start(spatial="no.ckpt")}, r"no\.ckpt: no such checkpoint file"),
        ({"start": Start(spatial="pretrained")}, "the pretrained weights of 'test_vit' cannot be had"),
    ],
)
def test_unusable_settings(options, words, tmp_path):
    with pytest.raises(InputError, match=words):
        fit(tmp_path, two_sets(), **options)


def test_data_of_images_is_refused(tmp_path):
    from datamodules import ImageFolder
    from tests.images import write_images

    write_images(tmp_path / "train", 2)
    images = ImageFolder(str(tmp_path), image_size=32, batch_size=2, num_workers=0, val_fraction=0.5)
    with pytest.raises(InputError, match="this model needs a data module of videos, such as VideoFolder"):
        trainer(tmp_path).fit(made(), datamodule=images)


def test_a_task_without_data(tmp_path):
    with pytest.raises(InputError, match="this model needs a data module, which says what the classes are"):
        trainer(tmp_path).fit(made(), [batch_of(noise(1), torch.zeros(1, 1, dtype=torch.long))])
    with pytest.raises(InputError, match="the network is built by the Trainer"):
        made()(noise(1)[:, 0])
