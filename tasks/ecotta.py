"""Warming up EcoTTA's meta networks, and adapting on a stream beside other methods."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypedDict

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from tasks.optimization import scheduled
from tasks.reporting import log_json, log_picture
from tasks.stream_measures import StreamMeasures, corruption_table, forgetting_figure, method_table
from vision.batches import ImageBatch, StreamBatch
from vision.ecotta import Descent, EcoTTA, GuardOptions, Method, Online
from vision.ecotta.baselines import AdaptBN, BatchStatistics, Source, Tent
from vision.ecotta.cotta import CoTTA
from vision.ecotta.eata import EATA, ETA, RDumb
from vision.ecotta.meta import Form
from vision.ecotta.source import (
    RECORD,
    TORCHVISION,
    AdapterRecord,
    SourceRecord,
    holds_adapter,
    load_source,
    source_preprocessing,
)
from vision.errors import InputError, did_you_mean
from vision.labels import IGNORED
from vision.measure import profile_adaptation
from vision.pictures import render

METHODS: dict[str, type[Method]] = {
    "source": Source,
    "bn": BatchStatistics,
    "adaptbn": AdaptBN,
    "tent": Tent,
    "eta": ETA,
    "eata": EATA,
    "cotta": CoTTA,
    "rdumb": RDumb,
}
OWN = "ecotta"


@dataclass(frozen=True)
class Meta:
    """The meta networks; see :meth:`vision.ecotta.EcoTTA.attach`.

    Attributes:
        groups: how many groups of blocks; null for what ``partition`` says.
        partition: ``default``, ``auto``, numbers of blocks, or lists of the blocks' names.
        memory_budget_mb: for ``auto``.
        form: ``auto``, ``conv``, ``separable`` or ``residual``.
        kernel: of the convolutions; null for the usual one.
    """

    groups: int | None = None
    partition: Literal["default", "auto"] | list[int] | list[list[str]] = "default"
    memory_budget_mb: float | None = None
    form: Form | Literal["auto"] = "auto"
    kernel: int | None = None


class AdaptedPrediction(TypedDict):
    """What ``predict_step`` gives for a batch.

    Keys:
        path: the image files, ``B`` strings.
        domain: what was done to each.
        classes: int64 ``(B,)``, the most likely ones.
        probabilities: float32 ``(B,)``, theirs.
    """

    path: list[str]
    domain: list[str]
    classes: Tensor
    probabilities: Tensor


class TestTimeAdaptation(pl.LightningModule):
    """A trained network that goes on learning where it is used (EcoTTA, arXiv 2303.01904), beside other methods.

    ``fit`` warms up meta networks on source images; the network itself stays as it is. ``test`` shows a stream of
    corrupted images to several methods at once, each with a copy of the network: errors by corruption and round,
    errors on clean images after each corruption, memory and time go to the terminal, to ``stream.json`` and to
    ``pictures/test_forgetting.png``. Without ``--ckpt_path``, it takes the best checkpoint of the newest finished
    training of the configuration.

    Logs ``val_{loss,top1}`` (of pictures labelled pixel by pixel ``val_miou`` too) and
    ``test_METHOD_{error,clean_error,paper_mb,held_mb,ms}``: shares in [0, 1], megabytes, milliseconds.

    Args:
        source: the network's file: of ``ImageClassifier``, of RobustBench, or, with ``backbone``, of timm or
            torchvision. A configuration's file is trained first.
        backbone: the network of a file that does not say it; ``torchvision:NAME`` for networks that label pixels.
        pretrained: take timm's weights of ``backbone`` in the place of a file.
        trust_pickle: read files that hold pickled objects, which may run any code of their author's.
        meta: the meta networks.
        online: how EcoTTA adapts.
        methods: what ``test`` compares, of source, bn, adaptbn, tent, eta, eata, cotta, rdumb and ecotta.
        method_options: arguments of these by name, such as ``{tent: {lr: 0.001}}``; ``lr``, ``optimizer``,
            ``momentum`` and ``lr_batch`` change the method's own :class:`~vision.ecotta.Descent`; ``guard: true``
            watches it.
        label_smoothing: of the warm-up.
        optimizer: of the warm-up.
        lr_scheduler: of the warm-up.

    Raises:
        InputError: for whatever a user can put right, when the Trainer starts at the latest.
    """

    monitor = ("val_top1", "max")
    """What the best checkpoint is chosen by."""
    tests_newest_run = True
    headline = ("val_top1", "val_miou")
    adapter: EcoTTA
    __test__ = False  # no test of pytest's

    def __init__(
        self,
        source: str | None = None,
        backbone: str | None = None,
        pretrained: bool = False,
        trust_pickle: bool = False,
        meta: Meta = Meta(),
        online: Online = Online(),  # noqa: B008
        methods: list[str] | None = None,
        method_options: dict[str, dict[str, Any]] | None = None,
        label_smoothing: float = 0.0,
        optimizer: OptimizerCallable = lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        self.source, self.backbone, self.pretrained, self.trust_pickle = source, backbone, pretrained, trust_pickle
        self.meta, self.online = meta, online
        self.methods = methods or [*METHODS, OWN]
        self.method_options = method_options or {}
        for name in [*self.methods, *self.method_options]:
            if name not in METHODS and name != OWN:
                known = [*METHODS, OWN]
                raise InputError(f"methods: no '{name}'{did_you_mean(name, known)}; there are {', '.join(known)}")
        if OWN in self.method_options:
            raise InputError("method_options: EcoTTA's own options are model.online")
        if not 0 <= label_smoothing <= 1:
            raise InputError(f"label_smoothing must be in [0, 1], got {label_smoothing}")
        self.label_smoothing = label_smoothing
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.preprocessing = source_preprocessing(backbone, source, trust_pickle)
        if backbone is not None and backbone.startswith(TORCHVISION):
            self.monitor = ("val_miou", "max")
        self.class_names: list[str] = []
        self.built = False

    # ------------------------------------------------------------------------------------------------- the parts
    def configure_model(self) -> None:
        """Reads the network when the data's classes are known (Lightning calls it at the start)."""
        if self.built or self._trainer is None:
            return
        data = self._data()
        self.class_names = list(getattr(data, "class_names", []))
        if not self.class_names:
            raise InputError("this model needs a data module of labelled images, such as CorruptionStream")
        self.preprocessing = data.preprocessing
        if self.trainer.state.fn != TrainerFn.FITTING and self._waits_for_checkpoint():
            return  # the checkpoint says it in a moment
        model, record = load_source(
            self.source, self.backbone, self.class_names, self.preprocessing, self.pretrained, self.trust_pickle
        )
        self.configure_models(model, record)
        self.configure_metrics()
        self.built = True

    def _waits_for_checkpoint(self) -> bool:
        """Whether the network comes with ``--ckpt_path``, so that its own file need not be at hand."""
        if self.source is None:
            return False
        return self.source.endswith(".yaml") or holds_adapter(self.source, self.trust_pickle)

    def configure_models(self, model: nn.Module, record: SourceRecord) -> None:
        """The network with its meta networks."""
        meta = self.meta
        self.adapter = EcoTTA.attach(
            model,
            meta.groups,
            meta.partition,
            memory_budget_mb=meta.memory_budget_mb,
            batch_size=self._data().batch_size,
            form=meta.form,
            kernel=meta.kernel,
            input_size=self.preprocessing.size,
            **self.online.options(),
        )
        self.source_record = record

    def configure_metrics(self) -> None:
        """The measures of the warm-up."""
        classes = max(2, len(self.class_names))
        self.top1 = MulticlassAccuracy(classes, average="micro")
        self.miou = MulticlassJaccardIndex(classes)
        self.val_loss = MeanMetric()

    def _data(self) -> Any:
        return self.trainer.datamodule if self._trainer is not None else None  # type: ignore[attr-defined]

    # --------------------------------------------------------------------------------------------------- warm-up
    def _loss(self, logits: Tensor, target: Tensor) -> Tensor:
        # Of images 255 may be a class.
        ignored = IGNORED if target.dim() == 3 else -100
        return F.cross_entropy(logits, target, ignore_index=ignored, label_smoothing=self.label_smoothing)

    def training_step(self, batch: ImageBatch, batch_idx: int) -> Tensor:
        """Cross entropy through the whole network, whose meta networks alone are trained (Sec. 3.1).

        Every other batch is normalised by the source's statistics (ours): so the network takes those of single images,
        mixed with the source's, as well as those of batches.
        """
        prior = math.inf if batch_idx % 2 else 0.0
        logits = resized(self.adapter.warm_up_logits(batch["image"], prior), batch["target"])
        loss = self._loss(logits, batch["target"])
        images = len(batch["image"])
        self.log("train_loss", loss, prog_bar=True, on_step=True, on_epoch=True, sync_dist=True, batch_size=images)
        return loss

    def validation_step(self, batch: ImageBatch, batch_idx: int) -> None:
        """Adds a batch of clean images to the measures; predicted as online, without updates."""
        target = batch["target"]
        if not len(target):
            return
        logits = resized(self.adapter.logits(batch["image"]), target)
        self.val_loss.update(self._loss(logits, target), len(target))
        guess = logits.argmax(dim=1)
        if target.dim() == 3:
            labelled = target != IGNORED
            guess, target = guess[labelled], target[labelled]
            self.miou.update(guess, target)
        self.top1.update(guess, target)

    def on_validation_epoch_end(self) -> None:
        """Logs the measures."""
        measures = {"loss": self.val_loss, "top1": self.top1}
        if self.miou.update_called:
            measures["miou"] = self.miou
        for name, metric in measures.items():
            self.log(f"val_{name}", metric.compute(), prog_bar=name == "top1", sync_dist=True)
        for metric in (self.val_loss, self.top1, self.miou):
            metric.reset()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer of the meta networks, without weight decay of its own, and the schedule."""
        return scheduled(self.optimizer(self.adapter.metas.parameters()), self.lr_scheduler, self)

    # -------------------------------------------------------------------------------------------------- adapting
    def _method(self, name: str) -> Method:
        """A method with a network of its own; EcoTTA is the module's."""
        if name == OWN:
            self.adapter.reset()
            return self.adapter
        options = dict(self.method_options.get(name, {}))
        descent = {field.name: options.pop(field.name) for field in fields(Descent) if field.name in options}
        if "guard" in options:
            options["guard"] = GuardOptions() if options["guard"] else None
        if name == "cotta":
            options = {"mean": self.preprocessing.mean, "std": self.preprocessing.std, **options}
        if name == "eata":
            options = {"source": self._source_images(), **options}
        model = copy.deepcopy(self.adapter.model)
        try:
            method = METHODS[name](model, **options)
        except TypeError as error:
            raise InputError(f"method_options: {name}: {error}") from error
        method.descent = replace(method.descent, **descent)
        return method

    def _source_images(self) -> Iterator[Tensor]:
        for batch in self._data().train_dataloader():
            yield batch["image"].to(self.device)

    def _begin_stream(self) -> None:
        if not self.built:
            raise InputError("there is no trained network: run 'vision fit' with this configuration first")
        if self.trainer.world_size > 1:
            raise InputError("a stream is adapted on in its order, by one process: set trainer.devices to 1")

    def on_test_start(self) -> None:
        """Gives every method its network.

        Raises:
            InputError: there is no trained network, or a method's options are wrong.
        """
        self._begin_stream()
        with torch.inference_mode(False):  # weights copied in it could not be trained
            self._running = {name: self._method(name).to(self.device) for name in self.methods}
        self.streamed = StreamMeasures(self.methods, len(self.class_names))

    def test_step(self, batch: StreamBatch, batch_idx: int) -> None:
        """Shows a batch to every method in turn; each sees the images, and its answers are compared with the labels.

        The predictions that count are those from before the step.
        """
        image = batch["image"]
        if not len(image):
            return
        for name, method in self._running.items():
            if batch["probe"]:
                self.streamed.add(name, batch, resized(method.predict(image), batch["target"]))
                continue
            record = self.streamed.records[name]
            if record.profile is None:
                with torch.inference_mode(False):
                    record.profile = profile_adaptation(method, image.clone())
            self._wait()
            start = time.perf_counter()
            logits = method.adapt(image)
            self._wait()
            self.streamed.note(name, method.last, 1e3 * (time.perf_counter() - start))
            self.streamed.add(name, batch, resized(logits, batch["target"]))

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def on_test_epoch_end(self) -> None:
        """Prints, logs and writes what was measured."""
        report = self.streamed.report()
        for name, of in report.items():
            for key in ("error", "clean_error_at_the_end", "paper_mb", "held_mb", "ms"):
                if of.get(key) is not None:
                    self.log(f"test_{name}_{key.removesuffix('_at_the_end')}", float(of[key]))
        setting = self._setting()
        print(f"\n{corruption_table(report)}\n\n{method_table(report)}\n\n{setting}", flush=True)
        for name, of in report.items():
            for event in of["events"]:
                print(f"{name}, step {event['step']}: {event['what']}", flush=True)
        log_json(self, "stream", {"setting": setting, "methods": report})
        log_picture(self, "test_forgetting", render(forgetting_figure(report)))
        del self._running

    def _setting(self) -> str:
        """The protocol, in words."""
        data = self._data()
        images = "published files" if data.corrupted else f"our own corruptions ({data.corruptor.suite} strengths)"
        parts = [
            f"{data.order}, {data.rounds} round(s) of {len(data.stretches)} stretches, severity {data.severity}",
            f"{images}, {data.images or 'all'} images a stretch, batches of {data.stream_batch_size}, no reset between",
            f"EcoTTA: {self.online}",
            *(f"{name}: {self.method_options[name]}" for name in self.methods if name in self.method_options),
        ]
        if any(score.pixels for record in self.streamed.records.values() for score in record.scores.values()):
            parts.append("errors are 1 - mean intersection over union")
        return "; ".join(parts)

    def on_predict_start(self) -> None:
        """Checks that there is a trained network, and begins anew."""
        self._begin_stream()
        self.adapter.reset()

    def predict_step(self, batch: StreamBatch, batch_idx: int) -> AdaptedPrediction:
        """EcoTTA's predictions along the stream, as it learns."""
        if not len(batch["image"]) or batch["probe"]:
            empty = torch.zeros(0)
            return {"path": [], "domain": [], "classes": empty.long(), "probabilities": empty}
        shares = self.adapter.adapt(batch["image"]).softmax(dim=1).max(dim=1)
        return {
            "path": batch["path"],
            "domain": batch["domain"],
            "classes": shares.indices,
            "probabilities": shares.values,
        }

    def prediction_rows(self, outputs: AdaptedPrediction) -> tuple[list[str], list[list[str]]]:
        """The header and the rows of ``predictions.csv`` for what ``predict_step`` gave."""
        if outputs["classes"].dim() > 1:
            raise InputError("predict writes classes of images; of pixels 'vision infer ecotta' writes pictures")
        answers = zip(
            outputs["path"],
            outputs["domain"],
            outputs["classes"].tolist(),
            outputs["probabilities"].tolist(),
            strict=True,
        )
        rows = [[path, domain, self.class_names[i], f"{share:.4f}"] for path, domain, i, share in answers]
        return ["path", "domain", "class", "probability"], rows

    # ----------------------------------------------------------------------------------------------- checkpoints
    @property
    def record(self) -> AdapterRecord:
        """What a checkpoint says of the network beside its weights."""
        adapter = self.adapter
        return AdapterRecord(
            self.source_record,
            [list(names) for names in adapter.groups],
            adapter.form,
            adapter.kernel,
            self.online,
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the record, so that ``vision infer`` needs the file alone."""
        checkpoint[RECORD] = self.record.as_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Builds the network that the checkpoint has, where the configuration's own file is not at hand.

        Raises:
            InputError: the checkpoint is none of this task, or has other classes than the data.
        """
        if RECORD not in checkpoint:
            raise InputError("the checkpoint is not one of TestTimeAdaptation; adapt its network with model.source")
        record = AdapterRecord.from_dict(checkpoint[RECORD])
        if not self.built:
            state = {
                key.removeprefix("adapter."): value
                for key, value in checkpoint["state_dict"].items()
                if key.startswith("adapter.")
            }
            self.adapter = record.build(state, "the checkpoint", self.online)
            self.source_record = record.source
            self.class_names = self.class_names or record.source.class_names
            self.preprocessing = record.source.preprocessing
            self.configure_metrics()
            self.built = True
        own, kept = self.record, record
        if (own.groups, own.form, own.kernel) != (kept.groups, kept.form, kept.kernel):
            sizes = [[len(names) for names in groups] for groups in (kept.groups, own.groups)]
            raise InputError(
                f"the checkpoint's meta networks are {kept.form}, kernel {kept.kernel}, beside {sizes[0]} blocks; "
                f"model.meta says {own.form}, kernel {own.kernel}, {sizes[1]}"
            )
        if record.source.class_names != self.class_names:
            names = (record.source.class_names, self.class_names)
            known, data = (f"{len(of)} classes ({', '.join(of[:4])}, ...)" for of in names)
            raise InputError(f"the checkpoint knows {known}, the data has {data}")


def resized(logits: Tensor, target: Tensor) -> Tensor:
    """Logits of pixels at the size of the labels; others as they are."""
    if target.dim() == 3 and logits.shape[2:] != target.shape[1:]:
        return F.interpolate(logits, size=target.shape[1:], mode="bilinear")
    return logits
