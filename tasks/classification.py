"""Training and measuring image classifiers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict, cast

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from timm.utils import ModelEmaV3
from timm.utils.agc import adaptive_clip_grad
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
)

from tasks.optimization import decay_groups, scheduled
from tasks.reporting import Mistake, MistakeBoard, log_picture
from vision.batches import ImageBatch
from vision.classifiers import (
    RECORD,
    ClassifierRecord,
    create_classifier,
    head_names,
    in_head,
    load_classifier,
    preprocessing_of,
)
from vision.distillation import Distillation, distillation_loss
from vision.errors import InputError, did_you_mean
from vision.pictures import confusion_figure, contact_sheet, render


class ClassPrediction(TypedDict):
    """What ``predict_step`` gives for a batch.

    Keys:
        path: the image files, ``B`` strings.
        classes: int64 ``(B, k)``, the most likely classes first, k = min(5, classes).
        probabilities: float32 ``(B, k)``, theirs.
    """

    path: list[str]
    classes: Tensor
    probabilities: Tensor


class Measures(nn.Module):
    """What is measured of one pass over a data set, reduced over all processes.

    Args:
        num_classes: top-5 accuracy is added from six classes on.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        classes = max(num_classes, 2)
        shares: dict[str, Metric | MetricCollection] = {
            "top1": MulticlassAccuracy(classes, average="micro"),
            "f1_macro": MulticlassF1Score(classes, average="macro"),
            "calibration_error": MulticlassCalibrationError(classes, n_bins=15),
        }
        if classes > 5:
            shares["top5"] = MulticlassAccuracy(classes, top_k=5, average="micro")
        # Without compute groups: torchmetrics would merge top-1 and top-5 for good when they agree on the first batch.
        self.shares = MetricCollection(shares, compute_groups=False)
        self.loss = MeanMetric()
        self.confusion = MulticlassConfusionMatrix(classes)

    def update(self, logits: Tensor, target: Tensor, losses: Tensor) -> None:
        """Adds a batch: ``(B, classes)`` logits, ``(B,)`` class indices and losses."""
        self.shares.update(logits, target)
        self.loss.update(losses)
        self.confusion.update(logits, target)

    def finish(self) -> tuple[dict[str, Tensor], Tensor]:
        """The measures by name, and the confusion matrix ``(classes, classes)``, rows the truth; starts anew."""
        measured = {"loss": self.loss.compute(), **self.shares.compute()}
        matrix: Tensor = self.confusion.compute()
        for metric in (self.shares, self.loss, self.confusion):
            metric.reset()
        return measured, matrix


class ImageClassifier(pl.LightningModule):
    """One class an image: our networks or any of timm's, from scratch, fine-tuned, or taught by a teacher.

    Logs ``{val,test}_{loss,top1,top5,f1_macro,calibration_error}`` (shares in [0, 1]; top-5 from six classes on;
    ``f1_macro`` averages over the classes that occur in truth or prediction; calibration error is the expected one
    over 15 bins) and, in the run's folder and logger, the confusion matrix and the worst mistakes as pictures.

    Args:
        backbone: a network of this package (``efficientvit_m0`` ... ``m5``) or of timm (``timm:NAME`` where both
            have it).
        num_classes: by default what the data module has.
        pretrained: start from the weights of timm's hub; a head of another size starts anew.
        checkpoint: start from the weights of a file (ours, official, or timm's); likewise.
        freeze: prefixes of parameters that stay as they are; ``backbone`` is everything but the head. Their batch
            normalisations stay in evaluation mode.
        freeze_norm: keep all batch normalisations in evaluation mode.
        label_smoothing: share of each target that is spread over all classes; of mixed targets too.
        distillation: learn from the teacher's most likely class (``hard``) or its distribution (``soft``).
        teacher: network of the teacher.
        teacher_checkpoint: its weights; by default those of timm's hub.
        distillation_alpha: weight of the teacher's part of the loss, in [0, 1].
        distillation_tau: temperature of ``soft``.
        distillation_head: a second head for the teacher's part (EfficientViT); evaluation averages both.
        ema_decay: keep an exponential moving average of the weights, which is then what is validated and used.
        channels_last: keep images and weights in the channels-last layout, in which convolutions are faster on CPU and,
            with mixed precision, on GPU.
        agc: clip gradients adaptively (arXiv 2102.06171) to this share of each weight's norm.
        optimizer: its weight decay spares vectors, biases and what the network exempts.
        lr_batch: the optimizer's ``lr`` is meant for this many images a step and is scaled linearly to the run's
            (batch size x processes x accumulated batches); by default ``lr`` is taken as it is.
        lr_scheduler: :class:`~vision.schedule.WarmupCosine` is told the length of the training and changes at
            every step; others are stepped once an epoch.

    Raises:
        InputError: for whatever a user can put right, when the Trainer starts at the latest.
    """

    model: nn.Module
    monitor = ("val_top1", "max")
    """What the best checkpoint is chosen by."""

    def __init__(
        self,
        backbone: str = "efficientvit_m0",
        num_classes: int | None = None,
        pretrained: bool = False,
        checkpoint: str | None = None,
        freeze: Sequence[str] = (),
        freeze_norm: bool = False,
        label_smoothing: float = 0.0,
        distillation: Distillation = "none",
        teacher: str | None = None,
        teacher_checkpoint: str | None = None,
        distillation_alpha: float = 0.5,
        distillation_tau: float = 1.0,
        distillation_head: bool = False,
        ema_decay: float | None = None,
        channels_last: bool = True,
        agc: float | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_batch: int | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler"])
        for name, value in (("label_smoothing", label_smoothing), ("distillation_alpha", distillation_alpha)):
            if not 0 <= value <= 1:
                raise InputError(f"{name} must be in [0, 1], got {value}")
        if ema_decay is not None and not 0 < ema_decay < 1:
            raise InputError(f"ema_decay must be in (0, 1), got {ema_decay}")
        if (distillation == "none") != (teacher is None):
            raise InputError("distillation and teacher belong together: give both or neither")
        self.backbone, self.num_classes, self.pretrained, self.checkpoint = (
            backbone,
            num_classes,
            pretrained,
            checkpoint,
        )
        self.freeze_prefixes, self.freeze_norm = list(freeze), freeze_norm
        self.label_smoothing, self.distillation = label_smoothing, distillation
        self.teacher_name, self.teacher_checkpoint = teacher, teacher_checkpoint
        self.alpha, self.tau, self.distillation_head = distillation_alpha, distillation_tau, distillation_head
        self.ema_decay, self.agc = ema_decay, agc
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.optimizer, self.lr_batch, self.lr_scheduler = optimizer, lr_batch, lr_scheduler

        self.preprocessing = preprocessing_of(backbone)
        self.class_names: list[str] = []
        self.built = False

    # ------------------------------------------------------------------------------------------------- the parts
    def configure_model(self) -> None:
        """Builds the network when the classes and the image size are known (Lightning calls it at the start)."""
        if self.built:
            self._check_classes(self._data_classes())
            return
        names = self._data_classes()
        classes = self.num_classes or len(names)
        if not classes:
            if self._trainer is None:
                return  # load_from_checkpoint: the checkpoint says it in a moment
            raise InputError("num_classes is needed: the data does not say how many classes there are")
        self.class_names = names or [str(i) for i in range(classes)]
        self.num_classes = classes
        self._check_classes(names)
        self.preprocessing = getattr(self._data(), "preprocessing", self.preprocessing)
        self.configure_models()
        self.configure_losses()
        self.configure_metrics()
        self.built = True

    def configure_models(self) -> None:
        """The network, its average and its teacher."""
        assert self.num_classes is not None
        size = self.preprocessing.size
        self.model = create_classifier(
            self.backbone, self.num_classes, size, self.pretrained, self.checkpoint, self.distillation_head
        ).to(memory_format=self.layout)
        self.ema = ModelEmaV3(self.model, decay=self.ema_decay) if self.ema_decay is not None else None
        self._freeze()
        # In a list, so that the teacher's weights stay out of the checkpoints.
        self._teacher: list[nn.Module] = []
        if self.teacher_name is not None:
            if self.teacher_checkpoint is not None:
                teacher, record = load_classifier(self.teacher_checkpoint, self.teacher_name)
                classes = len(record.class_names)
            else:
                teacher = create_classifier(self.teacher_name, self.num_classes, size, pretrained=True).eval()
                classes = int(cast("int", teacher.num_classes))
            if classes != self.num_classes:
                raise InputError(f"the teacher knows {classes} classes, the data has {self.num_classes}")
            self._teacher.append(teacher.requires_grad_(False))

    def configure_losses(self) -> None:
        """Cross entropy, on class indices as on probabilities."""
        self.criterion = nn.CrossEntropyLoss(label_smoothing=self.label_smoothing)

    def configure_metrics(self) -> None:
        """The measures of a validation or test pass, reduced over all processes."""
        assert self.num_classes is not None
        self.measures = nn.ModuleDict({part: Measures(self.num_classes) for part in ("val", "test")})
        self.mistakes = MistakeBoard()

    def _data(self) -> Any:
        return self.trainer.datamodule if self._trainer is not None else None  # type: ignore[attr-defined]

    def _data_classes(self) -> list[str]:
        return list(getattr(self._data(), "class_names", []))

    def _check_classes(self, names: Sequence[str]) -> None:
        if names and len(names) != self.num_classes:
            raise InputError(f"the network has {self.num_classes} classes, the data has {len(names)}")

    def _freeze(self) -> None:
        self._frozen_norms: list[nn.Module] = []
        heads = head_names(self.model)
        names = [name for name, _ in self.model.named_parameters()]
        frozen: set[str] = set()
        for prefix in self.freeze_prefixes:
            if prefix == "backbone":
                frozen |= {name for name in names if not in_head(name, heads)}
                continue
            matched = {name for name in names if name == prefix or name.startswith(prefix + ".")}
            if not matched:
                known = {name.rsplit(".", depth)[0] for name in names for depth in range(4)}
                raise InputError(
                    f"freeze: no parameter of {self.backbone} begins with '{prefix}'{did_you_mean(prefix, known)}"
                )
            frozen |= matched
        if frozen.issuperset(names):
            raise InputError("freeze: nothing is left to train")
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name not in frozen)
        for module in self.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                still = all(not parameter.requires_grad for parameter in module.parameters())
                if self.freeze_norm or (still and frozen):
                    self._frozen_norms.append(module.eval())

    def train(self, mode: bool = True) -> ImageClassifier:
        """As for any module; frozen batch normalisations stay in evaluation mode."""
        super().train(mode)
        for module in getattr(self, "_frozen_norms", []):
            module.eval()
        return self

    # -------------------------------------------------------------------------------------------------- training
    def forward(self, image: Tensor) -> Tensor:
        """``(B, 3, H, W)`` normalised images to ``(B, classes)`` logits, by the averaged weights if there are."""
        if not self.built:
            raise InputError("the network is built by the Trainer, or by configure_model() where num_classes is given")
        out: Tensor = (self.ema.module if self.ema is not None else self.model)(image)
        return out

    def on_fit_start(self) -> None:
        """Moves the teacher to where the training happens."""
        for teacher in self._teacher:
            teacher.to(self.device).eval()

    def loss(self, image: Tensor, target: Tensor) -> Tensor:
        """What is minimised: a scalar.

        Args:
            image: ``(B, 3, H, W)``, normalised.
            target: class indices ``(B,)`` or probabilities ``(B, classes)``.
        """
        image = image.contiguous(memory_format=self.layout)
        out = self.model(image)
        # With a second head the teacher is answered by that one.
        logits, answer = out if isinstance(out, tuple) else (out, out)
        loss: Tensor = self.criterion(logits, target)
        if self.distillation != "none":
            with torch.no_grad():
                taught = self._teacher[0](image)
            teaching = distillation_loss(answer, taught, self.distillation, self.tau)
            loss = (1 - self.alpha) * loss + self.alpha * teaching
        elif isinstance(out, tuple):
            loss = (loss + self.criterion(answer, target)) / 2
        return loss

    def training_step(self, batch: ImageBatch, batch_idx: int) -> Tensor:
        """The loss of a batch."""
        loss = self.loss(batch["image"], batch["target"])
        images = len(batch["image"])
        self.log("train_loss", loss, prog_bar=True, on_step=True, on_epoch=True, sync_dist=True, batch_size=images)
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """The step, and then the average follows the weights.

        Not in ``on_train_batch_end``: checkpoints are written before the module is asked there.
        """
        super().optimizer_step(*args, **kwargs)
        if self.ema is not None:
            self.ema.update(self.model)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Adaptive clipping where asked for, else the Trainer's."""
        if self.agc is not None:
            adaptive_clip_grad(self.model.parameters(), clip_factor=self.agc, eps=1e-3)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Two groups of parameters, with and without weight decay, and the schedule."""
        groups = decay_groups(self.model, getattr(self.model, "no_weight_decay", set)())
        optimizer = self.optimizer(groups)
        if self.lr_batch is not None:
            trainer = self.trainer
            images = self._data().batch_size * trainer.world_size * trainer.accumulate_grad_batches
            for group in optimizer.param_groups:
                group["lr"] *= images / self.lr_batch
        return scheduled(optimizer, self.lr_scheduler, self)

    # ------------------------------------------------------------------------------------------------ evaluation
    def _evaluate(self, batch: ImageBatch, part: str) -> None:
        image, target = batch["image"].contiguous(memory_format=self.layout), batch["target"]
        if not len(image):
            return
        logits = self(image)
        losses = F.cross_entropy(logits, target, reduction="none")
        cast("Measures", self.measures[part]).update(logits, target, losses)
        if part == "test":
            probabilities = logits.softmax(dim=1)
            for i in torch.nonzero(logits.argmax(dim=1) != target).flatten().tolist():
                guess = int(logits[i].argmax())
                self.mistakes.offer(
                    Mistake(batch["path"][i], int(target[i]), guess, float(probabilities[i, guess]), float(losses[i])),
                    image[i],
                )

    def validation_step(self, batch: ImageBatch, batch_idx: int) -> None:
        """Adds a batch to the validation measures."""
        self._evaluate(batch, "val")

    def test_step(self, batch: ImageBatch, batch_idx: int) -> None:
        """Adds a batch to the test measures."""
        self._evaluate(batch, "test")

    def on_validation_epoch_end(self) -> None:
        """Logs the validation measures and the confusion matrix."""
        self._finish("val")

    def on_test_epoch_end(self) -> None:
        """Logs the test measures, the confusion matrix and the worst mistakes."""
        self._finish("test")
        worst = self.mistakes.worst(self.trainer.world_size)
        if worst and self.trainer.is_global_zero:
            images = [picture for _, picture in self.mistakes.pictures(worst, self.preprocessing)]
            log_picture(
                self, "test_worst_mistakes", contact_sheet(images, [m.caption(self.class_names) for m, _ in worst])
            )

    def _finish(self, part: str) -> None:
        measured, matrix = cast("Measures", self.measures[part]).finish()
        for name, value in measured.items():
            self.log(f"{part}_{name}", value, prog_bar=name == "top1", sync_dist=True)
        if not self.trainer.sanity_checking and self.trainer.is_global_zero:
            log_picture(self, f"{part}_confusion", render(confusion_figure(matrix.cpu().numpy(), self.class_names)))

    def predict_step(self, batch: ImageBatch, batch_idx: int) -> ClassPrediction:
        """The most likely classes of each image."""
        probabilities = self(batch["image"].contiguous(memory_format=self.layout)).softmax(dim=1)
        top = probabilities.topk(min(5, probabilities.shape[1]), dim=1)
        return {"path": batch["path"], "classes": top.indices, "probabilities": top.values}

    def prediction_rows(self, outputs: ClassPrediction) -> tuple[list[str], list[list[str]]]:
        """The header and the rows of ``predictions.csv`` for what ``predict_step`` gave."""
        places = range(1, outputs["classes"].shape[1] + 1)
        header = ["path", *[f"{what}_{i}" for i in places for what in ("class", "probability")]]
        rows = []
        answers = zip(outputs["path"], outputs["classes"].tolist(), outputs["probabilities"].tolist(), strict=True)
        for path, indices, shares in answers:
            pairs = zip(indices, shares, strict=True)
            rows.append([path, *[cell for i, share in pairs for cell in (self.class_names[i], f"{share:.4f}")]])
        return header, rows

    # ----------------------------------------------------------------------------------------------- checkpoints
    @property
    def record(self) -> ClassifierRecord:
        """What a checkpoint says of the network beside its weights."""
        return ClassifierRecord(self.backbone, self.class_names, self.preprocessing, self.distillation_head)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the record, so that ``vision infer`` needs the file alone."""
        checkpoint[RECORD] = self.record.as_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Checks that the checkpoint's classes are the data's.

        Raises:
            InputError: they are not, or the checkpoint is none of this task.
        """
        if RECORD not in checkpoint:
            raise InputError(
                "the checkpoint is not one of ImageClassifier; start from its weights with model.checkpoint"
            )
        record = ClassifierRecord.from_dict(checkpoint[RECORD])
        if not self.built:
            self.num_classes, self.preprocessing = len(record.class_names), record.preprocessing
            self.configure_model()
            self.class_names = record.class_names
        if record.class_names != self.class_names:
            known = f"{len(record.class_names)} classes ({', '.join(record.class_names[:4])}, ...)"
            data = f"{len(self.class_names)} ({', '.join(self.class_names[:4])}, ...)"
            raise InputError(f"the checkpoint knows {known}, the data has {data}")
