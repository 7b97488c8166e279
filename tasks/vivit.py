"""Training and measuring video transformers whose spatial part may be frozen."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypedDict, cast

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from tasks.optimization import decay_groups, scheduled
from tasks.reporting import log_picture
from tasks.video_measures import VideoMeasures
from vision.batches import FeatureBatch, VideoBatch
from vision.classifiers import preprocessing_of
from vision.errors import InputError, shorten
from vision.labels import MISSING, LabelSchema
from vision.pictures import confusion_figure, render
from vision.vivit.checkpoint import FROZEN, VideoRecord, frozen_weights
from vision.vivit.model import AdapterOptions, FactorisedViViT, TemporalOptions, ViViTConfig
from vision.vivit.scores import ViewScore, draw_share, mean_over_views, mix, smooth
from vision.vivit.start import RECORD, Start, apply_start
from vision.vivit.temporal import Pool


@dataclass(frozen=True)
class FrozenPass:
    """How the frozen spatial transformer is run.

    Attributes:
        bfloat16: compute in bfloat16; the weights stay as they are.
        chunk: tubelets at a time, 0 for all: the pass takes the memory of so many images in inference.
        compiled: by ``torch.compile``.
        kept: what a feature cache keeps its numbers in.
    """

    bfloat16: bool = False
    chunk: int = 256
    compiled: bool = False
    kept: Literal["float16", "float32"] = "float16"


class VideoPrediction(TypedDict):
    """What ``predict_step`` gives for a batch.

    Keys:
        path: the video files, ``B`` strings.
        scores: of each label set, ``(B, classes)`` probabilities.
    """

    path: list[str]
    scores: dict[str, Tensor]


class VideoClassifier(pl.LightningModule):
    """The action in a clip by a factorised video transformer (arXiv 2103.15691, 2306.04822).

    A vision transformer of timm's encodes each frame or tubelet, an adapter makes one vector of its tokens, a temporal
    transformer joins the vectors. With ``freeze: spatial`` the first part runs without a graph and only the others are
    trained; a data module's feature cache may then take its place.

    The paper's two stages are two configurations: short clips end to end (``freeze: none``), then longer ones frozen,
    with ``start.spatial`` and ``start.temporal`` naming the first stage's checkpoint.

    Logs ``{val,test}_{loss,top1,top5,f1_macro,calibration_error}`` (shares in [0, 1]; top-5 from six classes on), a
    video's score being the mean over its views. With several label sets each has its own (``val_noun_top1``), the loss
    is their mean, and ``val_top1`` asks for all of them to be right; of two sets ``val_top5`` is that of the pair.

    Args:
        backbone: a vision transformer of timm's.
        backbone_options: further arguments of that network, such as ``{depth: 6}``.
        tubelet: frames a token spans.
        sampled_frames: take so many of a clip's frames, uniformly.
        pool: how a tubelet's tokens become one vector, in the adapter forms that pool.
        temporal_pool: the same over time.
        adapter: between the two transformers.
        temporal: the temporal transformer.
        pre_logits: width of a dense layer with tanh before the head, 0 for none.
        layer_drop: stochastic depth of the last blocks, in [0, 1).
        start: where the parts start from.
        freeze: ``spatial``, or ``none`` for training end to end.
        trained_blocks: so many last blocks of a frozen spatial part are trained nevertheless.
        frozen_pass: how the frozen part is run.
        save_frozen: keep the frozen weights in checkpoints, so that ``vision infer`` needs one file. Without,
            checkpoints say where they came from and their hash.
        mixup: alpha of Mixup, 0 for none; a batch is mixed with itself in reversed order by one share.
        label_smoothing: share of each label that is spread over the classes.
        view_score: what is averaged over views: ``logits`` (as the official trainer does) or ``softmax``.
        optimizer: its weight decay spares vectors, biases, positions and class tokens.
        lr_scheduler: as in ``ImageClassifier``.

    Raises:
        InputError: for whatever a user can put right, when the Trainer starts at the latest.
    """

    model: FactorisedViViT
    schema: LabelSchema
    monitor = ("val_top1", "max")
    """What the best checkpoint is chosen by."""

    def __init__(
        self,
        backbone: str = "vit_base_patch16_224",
        backbone_options: dict[str, Any] | None = None,
        tubelet: int = 1,
        sampled_frames: int | None = None,
        pool: Pool = "token",
        temporal_pool: Pool = "token",
        adapter: AdapterOptions = AdapterOptions(),  # noqa: B008 (frozen)
        temporal: TemporalOptions = TemporalOptions(),  # noqa: B008
        pre_logits: int = 0,
        layer_drop: float = 0.0,
        start: Start = Start(),  # noqa: B008
        freeze: Literal["none", "spatial"] = "spatial",
        trained_blocks: int = 0,
        frozen_pass: FrozenPass = FrozenPass(),
        save_frozen: bool = True,
        mixup: float = 0.0,
        label_smoothing: float = 0.0,
        view_score: ViewScore = "logits",
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing <= 1:
            raise InputError(f"label_smoothing must be in [0, 1], got {label_smoothing}")
        if mixup < 0:
            raise InputError(f"mixup must be at least 0, got {mixup}")
        if trained_blocks and freeze == "none":
            raise InputError("trained_blocks is of a frozen spatial part: set freeze to spatial")
        if frozen_pass.bfloat16 and (trained_blocks or freeze == "none"):
            raise InputError(
                "frozen_pass.bfloat16 is of a spatial part that is wholly frozen; for others there is trainer.precision"
            )
        if not save_frozen and start.spatial == "random":
            raise InputError("save_frozen must be true where start.spatial is random: no file has those weights")
        self.parts: dict[str, Any] = {
            "backbone": backbone,
            "backbone_options": backbone_options or {},
            "tubelet": tubelet,
            "sampled_frames": sampled_frames,
            "pool": pool,
            "temporal_pool": temporal_pool,
            "adapter": adapter,
            "temporal": temporal,
            "pre_logits": pre_logits,
            "layer_drop": layer_drop,
        }
        self.start, self.freeze_mode, self.trained_blocks = start, freeze, trained_blocks
        self.frozen_pass, self.save_frozen = frozen_pass, save_frozen
        self.mixup, self.label_smoothing, self.view_score = mixup, label_smoothing, view_score
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.preprocessing = preprocessing_of(backbone)
        self.stride: int | None = None
        self.built = self.started = False
        self._no_start: InputError | None = None

    # ------------------------------------------------------------------------------------------------- the parts
    def configure_model(self) -> None:
        """Builds the network when classes, frames and image size are known (Lightning calls it at the start)."""
        data = self._data()
        if data is not None:
            for name in ("schema", "frames", "stride"):
                if not hasattr(data, name):
                    raise InputError("this model needs a data module of videos, such as VideoFolder")
            if self.built and data.schema != self.schema:
                raise InputError("the classes of the network are other ones than those of the data")
        if data is None:
            if self.built or self._trainer is None:
                return  # load_from_checkpoint: the checkpoint says it in a moment
            raise InputError("this model needs a data module, which says what the classes are")
        if not self.built:
            self.schema, self.preprocessing, self.stride = data.schema, data.preprocessing, data.stride
            classes = sum(len(of) for of in self.schema.tasks.values())
            self.config = ViViTConfig(
                num_classes=classes, frames=data.frames, image_size=self.preprocessing.size, **self.parts
            )
            self._build()
        if self.trainer.state.fn == TrainerFn.FITTING and not self.started:
            self._begin()

    def _begin(self) -> None:
        """Sets the weights that a training starts from; one that is resumed does without the files of its start."""
        self.started = True
        try:
            for line in apply_start(self.model, self.start, self.schema):
                self._say(line)
        except InputError as error:
            self._no_start = error  # whether a checkpoint follows is not known yet

    def _build(self) -> None:
        self.configure_models()
        self.configure_metrics()
        if self.freeze_mode == "spatial":
            self.model.freeze_spatial(self.trained_blocks)
        self.built = True

    def configure_models(self) -> None:
        """The network."""
        self.model = FactorisedViViT(self.config, self.preprocessing)
        how = self.frozen_pass
        self.model.spatial.configure(how.bfloat16, how.chunk, how.compiled)

    def configure_metrics(self) -> None:
        """The measures of a validation or test pass, reduced over all processes."""
        self.measures = nn.ModuleDict({part: VideoMeasures(self.schema) for part in ("val", "test")})

    def _data(self) -> Any:
        return self.trainer.datamodule if self._trainer is not None else None  # type: ignore[attr-defined]

    @rank_zero_only
    def _say(self, text: str) -> None:
        print(f"vision: {text}", flush=True)

    # --------------------------------------------------------------------------------------------- frozen features
    @torch.no_grad()
    def frozen_features(self, media: Tensor) -> Tensor:
        """What the frozen spatial part makes of clips, for a cache.

        Args:
            media: uint8 ``(N, T, 3, H, W)``.

        Returns:
            ``(N, t, ...)``: what the adapter reads.
        """
        return self.model.summarise(media)

    def cache_fields(self) -> dict[str, Any]:
        """What frozen features depend on.

        Raises:
            InputError: the spatial part is trained, so that there are no frozen features.
        """
        if self.freeze_mode == "none" or self.trained_blocks:
            raise InputError("data.cache needs a frozen spatial part: set model.freeze to spatial, trained_blocks to 0")
        if self.mixup:
            raise InputError("data.cache holds features, model.mixup mixes pixels: leave out one of them")
        return {
            "backbone": self.config.backbone,
            "backbone_options": dict(self.config.backbone_options),
            "weights": self.model.spatial.weights_hash(),
            "tubelet": self.config.tubelet,
            "sampled_frames": self.config.sampled_frames,
            "kept": self.model.adapter.kept,
            "bfloat16": self.frozen_pass.bfloat16,
            "dtype": self.frozen_pass.kept,
        }

    # -------------------------------------------------------------------------------------------------- training
    def forward(self, video: Tensor) -> Tensor:
        """``(N, T, 3, H, W)``, uint8 or normalised, to logits ``(N, classes of all sets)``."""
        if not self.built:
            raise InputError("the network is built by the Trainer, which knows the data's classes")
        logits: Tensor = self.model(video)
        return logits

    def _logits(self, batch: VideoBatch | FeatureBatch) -> Tensor:
        """Logits of every view, ``(B, V, classes of all sets)``."""
        if not batch["path"]:  # none of the files could be read
            return torch.zeros(0, 1, self.config.num_classes, device=self.device)
        if "features" in batch:
            features = batch["features"]  # type: ignore[typeddict-item]
            logits, shape = self.model.read(features.flatten(0, 1)), features.shape[:2]
        else:
            video = batch["video"]
            logits, shape = self.model(video.flatten(0, 1)), video.shape[:2]
        views: Tensor = logits.unflatten(0, tuple(shape))
        return views

    def on_fit_start(self) -> None:
        """Checks that the training has its weights, and that nothing trained lies before what is frozen.

        Raises:
            InputError: ``start`` cannot be carried out, or the graph of frozen blocks would be kept.
        """
        if self._no_start is not None:
            raise self._no_start
        if early := self.model.spatial.trained_before_frozen():
            raise InputError(
                f"trained parameters lie before frozen blocks, whose activations would be kept: {shorten(early)}"
            )

    def training_step(self, batch: VideoBatch | FeatureBatch, batch_idx: int) -> Tensor:
        """The loss of a batch."""
        labels = batch["labels"]
        share = None
        if self.mixup and len(labels) > 1:
            place = self.current_epoch * 1_000_003 + batch_idx
            share = draw_share(self.mixup, place * self.trainer.world_size + self.global_rank)
            video = cast("VideoBatch", batch)["video"]
            pixels = self.model.spatial.normalise(video.flatten(0, 2)).unflatten(0, tuple(video.shape[:3]))
            batch = cast("VideoBatch", {**batch, "video": mix(pixels, share)})
        if batch["path"]:
            logits = self._logits(batch)[:, 0]
            losses = [
                self._loss(part, column, share)
                for part, column in zip(self._split(logits).values(), labels.unbind(dim=1), strict=True)
            ]
            loss = torch.stack(losses).mean()
        else:
            # None of the files could be read: a loss without effect, for the other processes' backward pass needs one.
            trained = [parameter.sum() for parameter in self.parameters() if parameter.requires_grad]
            loss = 0.0 * torch.stack(trained).sum()
        videos = max(1, len(labels))
        self.log("train_loss", loss, prog_bar=True, on_step=True, on_epoch=True, sync_dist=True, batch_size=videos)
        return loss

    def _loss(self, logits: Tensor, labels: Tensor, share: float | None) -> Tensor:
        """Cross entropy over the clips that are labelled, with smoothed and mixed targets."""
        known = labels != MISSING
        targets = F.one_hot(labels.clamp(min=0), logits.shape[1]).float()
        targets = smooth(targets, self.label_smoothing) * known[:, None]
        if share is not None:
            targets = mix(targets, share)
        return -(targets * logits.log_softmax(dim=1)).sum() / known.sum().clamp(min=1)

    def _split(self, scores: Tensor) -> dict[str, Tensor]:
        """``(B, classes of all sets)`` to those of each set."""
        sizes = [len(of) for of in self.schema.tasks.values()]
        return dict(zip(self.schema.names, scores.split(sizes, dim=1), strict=True))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The trained parameters with and without weight decay, and the schedule."""
        groups = decay_groups(self.model, self.model.no_weight_decay())
        return scheduled(self.optimizer(groups), self.lr_scheduler, self)

    # ------------------------------------------------------------------------------------------------ evaluation
    def _scores(self, batch: VideoBatch | FeatureBatch) -> dict[str, Tensor]:
        """Each set's log-scores of the videos: the views' mean logits, or the logarithm of their mean softmax."""
        parts = {}
        logits = self._logits(batch)
        for name, part in self._split(logits.flatten(0, 1)).items():
            views = part.unflatten(0, tuple(logits.shape[:2]))
            mean = mean_over_views(views, self.view_score)
            parts[name] = mean if self.view_score == "logits" else mean.clamp(min=1e-12).log()
        return parts

    def _evaluate(self, batch: VideoBatch | FeatureBatch, part: str) -> None:
        if len(batch["labels"]):
            cast("VideoMeasures", self.measures[part]).update(self._scores(batch), batch["labels"])

    def validation_step(self, batch: VideoBatch | FeatureBatch, batch_idx: int) -> None:
        """Adds a batch to the validation measures."""
        self._evaluate(batch, "val")

    def test_step(self, batch: VideoBatch | FeatureBatch, batch_idx: int) -> None:
        """Adds a batch to the test measures."""
        self._evaluate(batch, "test")

    def on_validation_epoch_end(self) -> None:
        """Logs the validation measures and the confusion matrix."""
        self._finish("val")

    def on_test_epoch_end(self) -> None:
        """Logs the test measures and the confusion matrix."""
        self._finish("test")

    def _finish(self, part: str) -> None:
        measured, matrices = cast("VideoMeasures", self.measures[part]).finish(self._anywhere)
        for name, value in measured.items():
            self.log(f"{part}_{name}", value, prog_bar=name == "top1", sync_dist=True)
        if self.trainer.sanity_checking or not self.trainer.is_global_zero:
            return
        for name, matrix in matrices.items():
            figure = confusion_figure(matrix.cpu().numpy(), list(self.schema.tasks[name].classes))
            place = f"{part}_confusion" + (f"_{name}" if len(self.schema.names) > 1 else "")
            log_picture(self, place, render(figure))

    def _anywhere(self, here: bool) -> bool:
        """Whether something holds on one of the processes at least."""
        number = self.trainer.strategy.reduce(torch.tensor(float(here), device=self.device), reduce_op="sum")
        return bool(number > 0)

    def predict_step(self, batch: VideoBatch | FeatureBatch, batch_idx: int) -> VideoPrediction:
        """The classes' probabilities of each video."""
        return {
            "path": batch["path"],
            "scores": {name: found.softmax(dim=1) for name, found in self._scores(batch).items()},
        }

    def prediction_rows(self, outputs: VideoPrediction) -> tuple[list[str], list[list[str]]]:
        """The header and the rows of ``predictions.csv`` for what ``predict_step`` gave: five best of each set."""
        header, rows = ["path"], [[path] for path in outputs["path"]]
        for name, scores in outputs["scores"].items():
            best = scores.topk(min(5, scores.shape[1]), dim=1)
            for place in range(best.indices.shape[1]):
                header += [f"{name}_{place + 1}", f"{name}_{place + 1}_probability"]
            classes = self.schema.tasks[name].classes
            for row, indices, values in zip(rows, best.indices.tolist(), best.values.tolist(), strict=True):
                for index, value in zip(indices, values, strict=True):
                    row += [classes[index], f"{value:.4f}"]
        return header, rows

    # ----------------------------------------------------------------------------------------------- checkpoints
    @property
    def record(self) -> VideoRecord:
        """What a checkpoint says of the network beside its weights."""
        return VideoRecord(self.config, self.schema, self.preprocessing, self.stride)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the record; leaves the frozen weights out where that is asked for."""
        checkpoint[RECORD] = self.record.as_dict()
        if self.save_frozen or self.freeze_mode == "none" or self.trained_blocks:
            return
        state = checkpoint["state_dict"]
        for key in [key for key in state if key.startswith("model.spatial.")]:
            del state[key]
        checkpoint[FROZEN] = {
            "source": self.start.spatial,
            "inflation": self.start.inflation,
            "sha256": self.model.spatial.weights_hash(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Checks that the checkpoint's network is this one, its classes the data's; fetches frozen weights.

        Raises:
            InputError: they are not, or the checkpoint is none of this task.
        """
        if RECORD not in checkpoint:
            raise InputError("the checkpoint is not one of VideoClassifier; start from it with model.start")
        record = VideoRecord.from_dict(checkpoint[RECORD])
        if not self.built:
            self.config, self.schema = record.config, record.schema
            self.preprocessing, self.stride = record.preprocessing, record.stride
            self._build()
        self.started, self._no_start = True, None
        if record.schema != self.schema:
            raise InputError("the checkpoint has other classes than the data")
        if record.config != self.config:
            theirs, ours = record.config.as_dict(), self.config.as_dict()
            name = next(name for name in ours if ours[name] != theirs[name])
            raise InputError(f"the checkpoint has {name} {theirs[name]}, the configuration {ours[name]}")
        if frozen := checkpoint.get(FROZEN):
            own = self.start.spatial if Path(self.start.spatial).is_file() else None
            found = frozen_weights(self.model, frozen, own, "the checkpoint")
            checkpoint["state_dict"].update({f"model.{key}": value for key, value in found.items()})
            self.start = replace(self.start, spatial=own or frozen["source"], inflation=frozen["inflation"])
