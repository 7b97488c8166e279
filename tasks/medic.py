"""Training and measuring one network for several classification tasks with missing labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypedDict, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer

from tasks.multitask_measures import MultitaskMeasures, mean_of, most_frequent, report, report_table
from tasks.optimization import decay_groups, scheduled
from tasks.reporting import log_json, log_picture
from vision.batches import MultitaskBatch
from vision.classifiers import preprocessing_of
from vision.errors import InputError
from vision.labels import LabelSchema, count_labels
from vision.measure.state import unchanged
from vision.medic.answers import Answer, answers
from vision.medic.checkpoint import RECORD, MultitaskRecord
from vision.medic.gradients import TaskGradients
from vision.medic.losses import MaskedLosses, class_balanced_weights, log_priors, means
from vision.medic.model import MultitaskNetwork
from vision.medic.weighting import EqualWeights, Weighting
from vision.pictures import confusion_figure, render


class MultitaskPrediction(TypedDict):
    """What ``predict_step`` gives for a batch.

    Keys:
        path: the image files, ``B`` strings.
        answers: of each image, by task.
    """

    path: list[str]
    answers: list[dict[str, Answer]]


class MultitaskClassifier(pl.LightningModule):
    """Several classification tasks an image by one backbone (MEDIC, arXiv 2108.12828), from tables with missing labels.

    A task's loss is the mean over the images of an optimizer step that are labelled for it: of all processes, and of
    all batches where gradients are accumulated, so that neither changes what is trained. A weighting makes one step of
    the tasks' losses.

    Logs ``{val,test}_{loss,mean_f1_macro,mean_accuracy}`` and ``{val,test}_TASK_MEASURE`` with the measures of
    :func:`vision.medic.measures.confusion_measures`, ``loss`` and ``calibration_error`` (the expected one over 15 bins
    of the most likely class's probability), each over the images that are labelled for the task; a task without any is
    left out. Writes ``{val,test}_report.json`` with all of it, every class's precision, recall and F1, the confusion
    matrices and what always saying the most frequent class of the training images would reach.

    Args:
        backbone: a network of this package (``efficientvit_m0`` ... ``m5``) or of timm.
        tasks: some of the data's tasks, for a network of fewer of them; by default all.
        pretrained: start from the weights of timm's hub.
        checkpoint: start the backbone from the weights of a classifier's file (ours, official, or timm's).
        dropout: of the features, in [0, 1).
        ordinal: tasks whose classes are ordered get an ordinal head (K - 1 cumulative logits, binary cross entropy).
        weighting: how the tasks' losses become one step; by default their plain sum. Rules that look at the tasks'
            gradients (``GradNorm``, ``PCGrad``, ``CAGrad``) take a backward pass for each task, and so does ``FAMO``
            where gradients are accumulated; these need one device or DDP, and no fp16.
        label_smoothing: share of each label that is spread over the classes; not of ordinal heads.
        class_weights: ``balanced`` weighs classes by their effective numbers in training (arXiv 1901.05555).
        logit_adjustment: tau of logit adjustment (arXiv 2007.07314), 0 for none; not of ordinal heads.
        channels_last: keep images and weights in the channels-last layout.
        optimizer: its weight decay spares vectors, biases and what the network exempts.
        lr_scheduler: as in ``ImageClassifier``.

    Raises:
        InputError: for whatever a user can put right, when the Trainer starts at the latest.
    """

    model: MultitaskNetwork
    schema: LabelSchema
    epoch_sums: Tensor
    epoch_counts: Tensor
    monitor = ("val_mean_f1_macro", "max")
    """What the best checkpoint is chosen by."""
    headline = ("val_loss", "val_mean_accuracy", "val_mean_f1_macro")
    """What is said of a training at its end; the rest is in the report, whose table the task prints itself."""

    def __init__(
        self,
        backbone: str = "resnet18",
        tasks: Sequence[str] = (),
        pretrained: bool = False,
        checkpoint: str | None = None,
        dropout: float = 0.0,
        ordinal: bool = False,
        weighting: Weighting | None = None,
        label_smoothing: float = 0.0,
        class_weights: Literal["none", "balanced"] = "none",
        logit_adjustment: float = 0.0,
        channels_last: bool = True,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler", "weighting"])
        if not 0 <= label_smoothing <= 1:
            raise InputError(f"label_smoothing must be in [0, 1], got {label_smoothing}")
        if not 0 <= dropout < 1:
            raise InputError(f"dropout must be in [0, 1), got {dropout}")
        if logit_adjustment < 0:
            raise InputError(f"logit_adjustment must be at least 0, got {logit_adjustment}")
        self.backbone, self.task_names, self.pretrained, self.checkpoint = backbone, list(tasks), pretrained, checkpoint
        self.dropout, self.ordinal = dropout, ordinal
        self.weighting = weighting if weighting is not None else EqualWeights()
        self.label_smoothing, self.class_weights, self.logit_adjustment = (
            label_smoothing,
            class_weights,
            logit_adjustment,
        )
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.preprocessing = preprocessing_of(backbone)
        self.built = False

    # ------------------------------------------------------------------------------------------------- the parts
    def configure_model(self) -> None:
        """Builds the network when tasks and image size are known (Lightning calls it at the start)."""
        data = self._data()
        if data is not None:
            if not hasattr(data, "schema"):
                raise InputError("this model needs a data module with several tasks, such as MultitaskImages")
            schema: LabelSchema = data.schema.subset(self.task_names) if self.task_names else data.schema
            if self.built:
                self._check_schema(schema)
            self.columns = [data.schema.names.index(name) for name in schema.names]
        if self.built:
            return
        if data is None:
            if self._trainer is None:
                return  # load_from_checkpoint: the checkpoint says it in a moment
            raise InputError("this model needs a data module, which says what the tasks are")
        self.preprocessing = data.preprocessing
        self._build(schema)

    def _build(self, schema: LabelSchema) -> None:
        self.schema = schema
        self.configure_models()
        self.configure_losses()
        self.configure_metrics()
        self.built = True

    def configure_models(self) -> None:
        """The network."""
        self.model = MultitaskNetwork(
            self.backbone,
            self.schema,
            self.preprocessing.size,
            self.pretrained,
            self.checkpoint,
            self.dropout,
            self.ordinal,
        ).to(memory_format=self.layout)

    def configure_losses(self) -> None:
        """The tasks' losses in training and in evaluation (there plain), and the weighting."""
        schema, cumulative = self.schema, self.model.cumulative
        counts = self._class_counts()
        balanced = {name: class_balanced_weights(counts[name]) for name in counts if self.class_weights == "balanced"}
        adjustment = {
            name: self.logit_adjustment * log_priors(counts[name])
            for name in counts
            if self.logit_adjustment and name not in cumulative
        }
        self.losses = MaskedLosses(schema, cumulative, self.label_smoothing, balanced, adjustment)
        self.plain_losses = MaskedLosses(schema, cumulative)
        self.weighting.bind(schema.names)
        tasks = len(schema.names)
        self.register_buffer("epoch_sums", torch.zeros(tasks))
        self.register_buffer("epoch_counts", torch.zeros(tasks))

    def configure_metrics(self) -> None:
        """The measures of a validation or test pass, reduced over all processes."""
        cumulative = self.model.cumulative
        self.measures = nn.ModuleDict({part: MultitaskMeasures(self.schema, cumulative) for part in ("val", "test")})

    def _data(self) -> Any:
        return self.trainer.datamodule if self._trainer is not None else None  # type: ignore[attr-defined]

    def _class_counts(self) -> dict[str, list[int]]:
        counts: Mapping[str, list[int]] = getattr(self._data(), "class_counts", {})
        return {name: counts[name] for name in self.schema.names if name in counts}

    def _check_schema(self, schema: LabelSchema) -> None:
        if schema == self.schema:
            return
        for name, of in schema.tasks.items():
            if name in self.schema.tasks and self.schema.tasks[name] != of:
                raise InputError(f"the classes of {name} are other ones for the network than for the data")
        raise InputError(
            f"the network answers {', '.join(self.schema.names)}, the data has {', '.join(schema.names)} "
            "(model.tasks chooses among them)"
        )

    # -------------------------------------------------------------------------------------------------- training
    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """``(B, 3, H, W)`` normalised images to the logits of each task."""
        if not self.built:
            raise InputError("the network is built by the Trainer, which knows the data's tasks")
        found: dict[str, Tensor] = self.model(image.contiguous(memory_format=self.layout))
        return found

    def on_fit_start(self) -> None:
        """Settles whether the tasks' gradients are taken one by one."""
        window = self.trainer.accumulate_grad_batches
        needs = self.weighting.needs
        apart = needs == "gradients" or (needs == "losses" and window > 1)
        rule = type(self.weighting).__name__
        if apart:
            if not isinstance(self.trainer.strategy, DDPStrategy | SingleDeviceStrategy):
                raise InputError(f"{rule} needs the tasks' whole gradients: use one device, or --trainer.strategy ddp")
            if getattr(self.trainer.precision_plugin, "scaler", None) is not None:
                raise InputError(f"{rule} takes gradients that no scaler has seen: use bf16-mixed, not fp16")
        shared, own = list(self.model.trunk.parameters()), list(self.model.head.parameters())
        if needs == "losses":
            shared, own = shared + own, []  # such a rule weighs the heads' gradients too
        self._gradients = TaskGradients(shared, own, len(self.schema.names)) if apart else None
        self._start_window()

    def _start_window(self) -> None:
        self._window_sums = torch.zeros(len(self.schema.names), device=self.device)
        self._window_counts = torch.zeros_like(self._window_sums)
        self._window: list[tuple[Tensor, Tensor]] = []

    def _total(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        total: Tensor = self.trainer.strategy.reduce(tensor.clone(), reduce_op="sum")
        return total

    def training_step(self, batch: MultitaskBatch, batch_idx: int) -> Tensor:
        """A batch's part of the step."""
        image, labels = batch["image"], batch["labels"][:, self.columns]
        sums = self.losses(self(image), labels)
        counts = count_labels(labels)
        told = torch.stack([batch["labelled"][self.columns].to(sums), counts.to(sums), sums.detach()])
        window, seen, seen_sums = self._total(told)
        self._window_counts, self._window_sums = window, self._window_sums + seen_sums
        self.epoch_counts += seen
        self.epoch_sums += seen_sums
        self.log("train_loss", means(seen_sums, seen).sum(), prog_bar=True, on_step=True, batch_size=len(image))
        if self.weighting.looks_back:
            self._window.append((image, labels))
        if self._gradients is not None:
            self._gradients.add(means(sums, window), counts > 0)
            return self._nothing(self.parameters())  # is left to do for the backward pass
        # Lightning divides by the batches of a step, and DDP's mean by the processes.
        parts = self.trainer.accumulate_grad_batches
        values, present = means(seen_sums, window) * parts, window > 0
        weights = self.weighting.weights(values, present)
        scaled = means(sums, window) * parts * self.trainer.world_size
        return (weights * scaled).sum() + self._nothing(self.weighting.parameters())

    @staticmethod
    def _nothing(parameters: Iterable[nn.Parameter]) -> Tensor:
        """A zero that depends on the parameters, all of which DDP wants to see in a backward pass."""
        return sum((0.0 * parameter.sum() for parameter in parameters if parameter.requires_grad), torch.zeros(()))

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Puts the tasks' gradients together, where they were taken one by one, and gives the weighting its own."""
        present = self._window_counts > 0
        values, gram = means(self._window_sums, self._window_counts), None
        if self._gradients is not None:
            self._gradients.reduce(self._total)
            gram = self._gradients.gram()
            self._gradients.write(self.weighting.weights(values, present, gram))
        own = list(self.weighting.parameters())
        if own:
            found = torch.autograd.grad(self.weighting.own_loss(values, present, gram), own)
            for parameter, gradient in zip(own, found, strict=True):
                parameter.grad = gradient
        if not bool(present.any()):
            for parameter in self.parameters():
                parameter.grad = None  # so that optimizers leave the parameter, and its moments, alone

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """The step; then the weighting learns what came of it."""
        super().optimizer_step(*args, **kwargs)
        before, after, present = means(self._window_sums, self._window_counts), None, self._window_counts > 0
        if self.weighting.looks_back:
            after = means(self._total(self._losses_again()), self._window_counts)
        self.weighting.after_step(before, after, present)
        self._start_window()

    @torch.no_grad()
    def _losses_again(self) -> Tensor:
        """The sums of the losses of the step's batches, by the weights after the step."""
        with unchanged(self.model), self.trainer.precision_plugin.forward_context():
            return torch.stack([self.losses(self(image), labels) for image, labels in self._window]).sum(dim=0)

    def on_train_epoch_end(self) -> None:
        """Logs the tasks' losses of the epoch, and tells them to the weighting."""
        losses = self.epoch_sums / self.epoch_counts  # NaN where there were no labels
        self.weighting.end_epoch(losses)
        for name, loss in zip(self.schema.names, losses.tolist(), strict=True):
            self.log(f"train_{name}_loss", loss)
        self.epoch_sums.zero_()
        self.epoch_counts.zero_()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Parameters with and without weight decay (those of the weighting without), and the schedule."""
        groups = decay_groups(self.model, self.model.no_weight_decay())
        learned = list(self.weighting.parameters())
        if learned:
            groups.append({"params": learned, "weight_decay": 0.0})
        return scheduled(self.optimizer(groups), self.lr_scheduler, self)

    # ------------------------------------------------------------------------------------------------ evaluation
    def _evaluate(self, batch: MultitaskBatch, part: str) -> None:
        if not len(batch["image"]):
            return
        labels = batch["labels"][:, self.columns]
        logits = self(batch["image"])
        cast("MultitaskMeasures", self.measures[part]).update(logits, labels, self.plain_losses(logits, labels))

    def validation_step(self, batch: MultitaskBatch, batch_idx: int) -> None:
        """Adds a batch to the validation measures."""
        self._evaluate(batch, "val")

    def test_step(self, batch: MultitaskBatch, batch_idx: int) -> None:
        """Adds a batch to the test measures."""
        self._evaluate(batch, "test")

    def on_validation_epoch_end(self) -> None:
        """Logs the validation measures."""
        self._finish("val")

    def on_test_epoch_end(self) -> None:
        """Logs the test measures."""
        self._finish("test")

    def _finish(self, part: str) -> None:
        measured, matrices = cast("MultitaskMeasures", self.measures[part]).finish()
        # A check of two batches may have met no label: what it lacks must not count as a result.
        if not measured or self.trainer.sanity_checking:
            return
        for task, of in measured.items():
            for name, value in of.items():
                self.log(f"{part}_{task}_{name}", value)
        self.log(f"{part}_loss", sum(of["loss"] for of in measured.values()))
        self.log(f"{part}_mean_accuracy", mean_of(measured, "accuracy"))
        self.log(f"{part}_mean_f1_macro", mean_of(measured, "f1_macro"), prog_bar=True)
        if not self.trainer.is_global_zero:
            return
        majorities = {name: most_frequent(counts) for name, counts in self._class_counts().items()}
        content = report(self.schema, measured, matrices, majorities)
        log_json(self, f"{part}_report", content)
        for task, matrix in matrices.items():
            figure = confusion_figure(matrix, self.schema.tasks[task].classes)
            log_picture(self, f"{part}_confusion_{task}", render(figure))
        if self.trainer.state.fn != TrainerFn.FITTING:
            print(report_table(content), flush=True)

    def predict_step(self, batch: MultitaskBatch, batch_idx: int) -> MultitaskPrediction:
        """The answers of every task for each image."""
        found = answers(self.schema, self.model.cumulative, self(batch["image"]))
        return {"path": batch["path"], "answers": found}

    def prediction_rows(self, outputs: MultitaskPrediction) -> tuple[list[str], list[list[str]]]:
        """The header and the rows of ``predictions.csv`` for what ``predict_step`` gave."""
        header = ["path", *[cell for name in self.schema.names for cell in (name, f"{name}_probability")]]
        rows = []
        for path, of in zip(outputs["path"], outputs["answers"], strict=True):
            rows.append([path, *[cell for a in of.values() for cell in (a["label"], f"{a['probability']:.4f}")]])
        return header, rows

    # ----------------------------------------------------------------------------------------------- checkpoints
    @property
    def record(self) -> MultitaskRecord:
        """What a checkpoint says of the network beside its weights."""
        return MultitaskRecord(self.backbone, self.schema, self.preprocessing, self.ordinal)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the record, so that ``vision infer`` needs the file alone."""
        checkpoint[RECORD] = self.record.as_dict()
        checkpoint["weighting"] = type(self.weighting).__name__

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Checks that the checkpoint's network is this one, its tasks and classes the data's.

        Raises:
            InputError: they are not, or the checkpoint is none of this task.
        """
        if RECORD not in checkpoint:
            raise InputError(
                "the checkpoint is not one of MultitaskClassifier; start from its weights with model.checkpoint"
            )
        record = MultitaskRecord.from_dict(checkpoint[RECORD])
        if not self.built:
            self.preprocessing = record.preprocessing
            self._build(record.schema)
        for what, known, given in (
            ("backbone", record.backbone, self.backbone),
            ("ordinal", record.ordinal, self.ordinal),
        ):
            if known != given:
                raise InputError(f"the checkpoint has model.{what} {known}, the configuration {given}")
        if record.schema != self.schema:
            raise InputError(
                f"the checkpoint answers {', '.join(record.schema.names)}, the network {', '.join(self.schema.names)} "
                "(or their classes differ)"
            )
        self._take_weighting(checkpoint)

    def _take_weighting(self, checkpoint: dict[str, Any]) -> None:
        """What a weighting has learned is taken where a training goes on, which needs the same one."""
        rule, own = checkpoint["weighting"], type(self.weighting).__name__
        if self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            if rule != own:
                raise InputError(f"the checkpoint was trained with model.weighting {rule}, the configuration has {own}")
            return
        state = checkpoint["state_dict"]
        for key in [key for key in state if key.startswith("weighting.")]:
            del state[key]
        state.update({f"weighting.{key}": value for key, value in self.weighting.state_dict().items()})
