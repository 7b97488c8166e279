"""Training and measuring networks on a labelled and an unlabelled domain that need not have the same classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor

from tasks.domain_measures import DomainPrediction, OpenSetScores, prediction_rows, report_text
from tasks.domain_state import BothDomains
from tasks.optimization import scheduled
from tasks.reporting import log_json
from vision.batches import DomainBatch, DomainImages
from vision.checkpoints import weights_hash
from vision.errors import InputError
from vision.memspm.baselines import NeighbourBank
from vision.memspm.checkpoint import RECORD, DomainRecord
from vision.memspm.decoder import SIDES
from vision.memspm.encoder import Feature, Trainable, create_encoder, encoder_preprocessing, set_trainable
from vision.memspm.grouping import ClusterOptions
from vision.memspm.memory import MemoryOptions
from vision.memspm.model import AdaptationNetwork, Method
from vision.memspm.objective import (
    LossWeights,
    Rows,
    consensus_losses,
    dance_loss,
    one_vs_all_loss,
    reconstruction_loss,
    source_loss,
)
from vision.memspm.online import OnlineClusters
from vision.memspm.regulariser import ramp
from vision.memspm.rejection import NEEDS, RULES, Cut, Rule


@dataclass(frozen=True)
class RateScales:
    """Learning rates in proportion to that of the head.

    Attributes:
        memory: of the sub-prototypes, which have no weight decay.
        encoder: of an encoder that is trained.
    """

    memory: float = 1.0
    encoder: float = 0.1


class Recluster(Callback):
    """Sets the groups anew at the beginning of a step, every so many steps."""

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Asks the task, where it is time."""
        assert isinstance(pl_module, UniversalDomainAdaptation)
        how, step = pl_module.clustering, trainer.global_step
        if pl_module.clusters_target and step >= how.warmup and (step - how.warmup) % how.every == 0:
            pl_module.domains.recluster()


class UniversalDomainAdaptation(pl.LightningModule):
    """A classifier for unlabelled target pictures from labelled source pictures; what has no class is "unknown".

    MemSPM (arXiv 2310.05453): features of a frozen encoder are replaced by the sub-prototypes of a memory that they
    are most similar to; classes and clusters of these embeddings are matched, aligned and kept apart as DCC does (CVPR
    2021). DCC itself, OVANet, DANCE and source-only training take the same features.

    Logs ``val_consensus`` (of the last matching, without labels), ``val_used`` (share of used sub-prototypes), and
    where the target has labels ``{val,test}_{h,h3,common,unknown,accuracy}`` of the chosen rule, shares in [0, 1].
    ``test`` prints all rules side by side and writes ``adaptation.json``. No label of the target's has a part in the
    training or in any choice.

    Args:
        backbone: any network of timm's.
        pretrained: timm's weights.
        checkpoint: weights of a file: ours, timm's, or of DCC's, UniOT's or OpenAI's release.
        feature: ``projected`` of CLIP's networks, ``pooled``, or ``auto``: the projection where there is one.
        trainable: of the encoder: ``none``, its ``norm`` layers, its ``last`` block, or ``all``.
        method: ``memspm``, ``dcc``, ``ovanet``, ``dance`` or ``source_only``.
        memory: of MemSPM.
        width: of the head's bottleneck.
        decoder: learn to draw pictures of so many pixels (14, 28, 56, 112) from embeddings; ``data.thumbnails`` must be
            the same. 0 for none.
        losses: their weights.
        clustering: how the target is clustered.
        rule: what is unknown; ``auto`` is the method's own: ``blend``, ``cluster``, ``one_vs_all``, ``half_log_c``. In
            the settings ``pda`` and ``closed`` nothing is unknown.
        select: which step's checkpoint is called best: the ``last``, or that of the best ``consensus``.
        rate_scales: learning rates of the parts.
        optimizer: of all parts.
        lr_scheduler: as in ``ImageClassifier``.

    Raises:
        InputError: for whatever a user can put right, when the Trainer starts at the latest.
    """

    model: AdaptationNetwork
    tests_newest_run = True
    headline = ("val_consensus", "val_used", "val_h", "val_accuracy")
    own_rules: dict[Method, Rule] = {  # noqa: RUF012 (of the class)
        "memspm": "blend",
        "dcc": "cluster",
        "ovanet": "one_vs_all",
        "dance": "half_log_c",
        "source_only": "half_log_c",
    }

    def __init__(
        self,
        backbone: str = "vit_base_patch16_clip_quickgelu_224.openai",
        pretrained: bool = False,
        checkpoint: str | None = None,
        feature: Feature = "auto",
        trainable: Trainable = "none",
        method: Method = "memspm",
        memory: MemoryOptions = MemoryOptions(),  # noqa: B008 (frozen)
        width: int = 256,
        decoder: int = 0,
        losses: LossWeights = LossWeights(),  # noqa: B008
        clustering: ClusterOptions = ClusterOptions(),  # noqa: B008
        rule: Rule | str = "auto",
        select: str = "last",
        rate_scales: RateScales = RateScales(),
        optimizer: OptimizerCallable = lambda p: torch.optim.SGD(p, 0.01, 0.9, weight_decay=5e-4, nesterov=True),
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        if pretrained and checkpoint is not None:
            raise InputError("give either pretrained or checkpoint, not both")
        if decoder not in (0, *SIDES):
            raise InputError(f"decoder draws {', '.join(map(str, SIDES))} pixels, or 0 for none; got {decoder}")
        if width < 1:
            raise InputError(f"width must be at least 1, got {width}")
        self.method: Method = method
        self.clusters_target = method in ("memspm", "dcc")
        chosen = self.own_rules[method] if rule == "auto" else rule
        if chosen not in RULES:
            raise InputError(f"rule must be auto or one of {', '.join(RULES)}, got {rule}")
        self.rule: Rule = chosen
        if chosen not in self.rules:
            raise InputError(f"rule: '{chosen}' needs what {method} has not; it has {', '.join(self.rules)}")
        if select not in ("last", "consensus"):
            raise InputError(f"select must be last or consensus, got {select}")
        if select == "consensus" and not self.clusters_target:
            raise InputError(f"select: {method} has no clusters, so it has no consensus")
        self.monitor = ("val_consensus", "max") if select == "consensus" else ("step", "max")
        self.source_of_weights = {"pretrained": pretrained, "checkpoint": checkpoint}
        self.backbone, self.feature, self.trainable = backbone, feature, trainable
        self.memory, self.width, self.decoder = memory, width, decoder
        self.losses, self.clustering, self.rate_scales = losses, clustering, rate_scales
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.preprocessing = encoder_preprocessing(backbone, checkpoint)
        self.class_names: list[str] = []
        self.built = self.trained = False
        self.online: OnlineClusters | None = None
        self.bank: NeighbourBank | None = None
        self.domains = BothDomains(self)
        self._kept_rule: Rule | None = None

    @property
    def rules(self) -> list[Rule]:
        """The rules that the method has scores for."""
        has = {"confidence"}
        has |= {"margin"} if self.clusters_target else set()
        has |= {"usage"} if self.method == "memspm" else set()
        has |= {"one_vs_all"} if self.method == "ovanet" else set()
        return ["none", *(rule for rule, needs in NEEDS.items() if has.issuperset(needs))]

    # ------------------------------------------------------------------------------------------------- the parts
    def configure_model(self) -> None:
        """Builds the network when the data's classes are known (Lightning calls it at the start)."""
        data = self._data()
        if self.built or self._trainer is None:
            return
        if not hasattr(data, "domain_loader"):
            raise InputError("this model needs a data module of two domains, such as Domains")
        self.class_names, self.preprocessing = list(data.class_names), data.preprocessing
        if self.decoder not in (0, data.thumbnails):
            raise InputError(f"the decoder draws {self.decoder}x{self.decoder} pixels: set data.thumbnails to that")
        if not data.rejects:
            self.rule = "none"
        self.configure_models()
        self.scores = OpenSetScores(len(self.class_names), self.width)
        self.built = True

    def configure_models(self) -> None:
        """The network, and clusters that are kept up online."""
        fitting = self.trainer.state.fn == TrainerFn.FITTING
        # Otherwise weights come with the checkpoint, and what only a training needs is left in it.
        weights = self.source_of_weights if fitting else {}
        encoder, features = create_encoder(self.backbone, self.preprocessing.size, feature=self.feature, **weights)  # type: ignore[arg-type]
        set_trainable(encoder, self.trainable)
        classes = len(self.class_names)
        self.model = AdaptationNetwork(encoder, features, classes, self.method, self.memory, self.width, self.decoder)
        rows = self._data().sizes["target"]
        if fitting and self.clusters_target and self.clustering.assign == "online":
            self.online = OnlineClusters(self.clustering.clusters or 2 * classes, self.width, rows)
        if fitting and self.method == "dance":
            self.bank = NeighbourBank(rows, self.width)

    def configure_callbacks(self) -> list[Callback]:
        """Clustering is a callback."""
        return [Recluster()]

    def _data(self) -> Any:
        return self.trainer.datamodule if self._trainer is not None else None  # type: ignore[attr-defined]

    @rank_zero_only
    def _say(self, text: str) -> None:
        print(f"vision: {text}", flush=True)

    # --------------------------------------------------------------------------------------------- frozen features
    @torch.no_grad()
    def frozen_features(self, media: Tensor) -> Tensor:
        """``(N, 3, H, W)`` pictures to the encoder's features ``(N, D)``, for a cache."""
        training = self.model.training
        features = self.model.eval().encode(media)
        self.model.train(training)
        return features

    def cache_fields(self) -> dict[str, Any]:
        """What frozen features depend on.

        Raises:
            InputError: the encoder is trained.
        """
        if self.trainable != "none":
            raise InputError("data.cache needs a frozen encoder: set model.trainable to none")
        return {
            "backbone": self.backbone,
            "feature": self.feature,
            "weights": weights_hash(self.model.encoder),
            "dtype": "float32",
        }

    # -------------------------------------------------------------------------------------------------- training
    def on_fit_start(self) -> None:
        """Says what is trained."""
        self.trained, self._kept_rule = True, None
        self.domains.forget()

    def on_train_start(self) -> None:
        """Begins the memory from both domains, and DANCE's bank."""
        if self.global_step == 0 and self.model.memory is not None and self.memory.start == "data":
            source, target = self.domains.survey("source"), self.domains.survey("target")
            self.model.memory.start_from(source.features, target.features)
        if self.global_step == 0 and self.bank is not None:
            target = self.domains.survey("target")
            self.bank.fill(self.domains.examine(target.features).neck, target.index)

    def training_step(self, batch: DomainBatch, batch_idx: int) -> Tensor:
        """The losses of the method, summed: with separate passes they have the gradient of DCC's three."""
        names = ["source"]
        if self.clusters_target:
            names += ["aligned_source", "aligned_target", "clustered"]
            self.domains.relabel(batch)
        if self.method in ("ovanet", "dance") or self.online is not None or self.decoder:
            names.append("target")
        parts = self._parts(batch, [name for name in names if len(batch[name]["index"])])  # type: ignore[literal-required]
        if "source" not in parts or len(parts["source"].group) < 2:
            raise InputError("a step needs two source pictures that can be read: raise data.batch_size")
        loss, source_neck = source_loss(self.model, parts["source"])
        losses = {"ce": loss}
        if "clustered" in parts:
            nothing = Rows(parts["source"].embedding[:0], parts["source"].group[:0], parts["source"].index[:0])
            aligned = parts.get("aligned_source", nothing), parts.get("aligned_target", nothing)
            labels = self.model.clusters.paired_classes[aligned[0].group]
            ramped = min(1.0, ramp(self.global_step, self.losses.ramp_steps or self._steps))
            losses |= consensus_losses(
                self.model, labels, aligned[0], aligned[1], parts["clustered"], self.losses, ramped
            )
        if "target" in parts and len(parts["target"].index) > 1:
            losses |= self._target_losses(parts["source"], source_neck, parts["target"], batch)
        total = torch.stack([value.float() for value in losses.values()]).sum()
        for name, value in losses.items():
            self.log(f"train_{name}", value.detach(), sync_dist=True, batch_size=len(batch["source"]["index"]))
        self.log("train_loss", total.detach(), prog_bar=True, sync_dist=True, batch_size=len(batch["source"]["index"]))
        return total

    def _target_losses(self, source: Rows, source_neck: Tensor, target: Rows, batch: DomainBatch) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}
        if self.method == "ovanet":
            losses |= one_vs_all_loss(self.model, source_neck, source.group, target, self.losses)
        if self.method == "dance":
            assert self.bank is not None
            losses |= dance_loss(self.model, target, self.bank, self.losses)
        if self.online is not None:
            with torch.no_grad():
                of_source, of_target = (
                    F.normalize(self._eval_neck(rows.embedding).float(), dim=1) for rows in (source, target)
                )
            self.online.update(of_source, source.group, of_target, target.index)
        if self.decoder:
            embedding = torch.cat([source.embedding, target.embedding])
            thumbnail = torch.cat([batch["source"]["thumbnail"], batch["target"]["thumbnail"]])
            losses["reconstruction"] = self.losses.reconstruction * reconstruction_loss(
                self.model, embedding, thumbnail
            )
        return losses

    def _eval_neck(self, embedding: Tensor) -> Tensor:
        training = self.model.head.training
        neck = self.model.head.eval().neck(embedding)
        self.model.head.train(training)
        return neck

    def _parts(self, batch: DomainBatch, names: list[str]) -> dict[str, Rows]:
        """Parts of a step as embeddings; the memory is asked once for all."""
        chosen: list[DomainImages] = [batch[name] for name in names]  # type: ignore[literal-required]
        features = [self.model.encode(part["media"]) for part in chosen]
        embeddings = self.model.address(torch.cat(features))[0].split([len(of) for of in features])
        return {
            name: Rows(embedding, part["group"], part["index"])
            for name, embedding, part in zip(names, embeddings, chosen, strict=True)
        }

    @property
    def _steps(self) -> int:
        steps = self.trainer.estimated_stepping_batches
        return int(steps) if steps not in (-1, float("inf")) else 5000

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Groups for head, memory (without weight decay) and encoder, and the schedule."""
        memory = [*self.model.memory.parameters()] if self.model.memory is not None else []
        encoder = [parameter for parameter in self.model.encoder.parameters() if parameter.requires_grad]
        placed = {id(parameter) for parameter in [*memory, *self.model.encoder.parameters()]}
        rest = [parameter for parameter in self.model.parameters() if id(parameter) not in placed]
        groups: list[dict[str, Any]] = [{"params": rest, "lr_scale": 1.0}]
        groups.append({"params": memory, "lr_scale": self.rate_scales.memory, "weight_decay": 0.0})
        groups.append({"params": encoder, "lr_scale": self.rate_scales.encoder})
        optimizer = self.optimizer([of for of in groups if of["params"]])
        for of in optimizer.param_groups:
            of["lr"] *= of["lr_scale"]
        return scheduled(optimizer, self.lr_scheduler, self)

    # -------------------------------------------------------------------------------------------------- measuring
    def on_validation_epoch_start(self) -> None:
        """Finds the cut, from the target's pictures; that of a checkpoint is kept."""
        if self.trained and not self.trainer.sanity_checking:
            if self.trainer.state.fn == TrainerFn.FITTING:
                self.domains.refresh()
            rejection = self.model.rejection
            self._cuts = {self.rule: Cut(rejection.weights.cpu().numpy().copy(), float(rejection.threshold))}

    def validation_step(self, batch: DomainImages, batch_idx: int) -> None:
        """Adds a batch of target pictures to the measures."""
        self._measure(batch)

    def _measure(self, batch: DomainImages) -> None:
        if len(batch["index"]):
            found = self.model.examine(batch["media"])
            self.scores.update(batch["group"], found.logits.argmax(dim=1), found.scores, found.neck)

    def on_validation_epoch_end(self) -> None:
        """Logs what needs no labels, and where there are labels the chosen rule's measures."""
        if self.trained and not self.trainer.sanity_checking:
            if self.clusters_target:
                self.log("val_consensus", self.domains.consensus or 0.0, prog_bar=True, sync_dist=True)
            if self.domains.health is not None:
                self.log("val_used", self.domains.health.used / self.domains.health.total, sync_dist=True)
            self._log_measures("val", self.scores.measure({self.rule: self._cuts[self.rule]}))
        self.scores.reset()

    def _log_measures(self, part: str, measured: dict[str, dict[str, Any]]) -> None:
        of = measured.get(self.rule, {})
        for name in ("h", "h3", "common", "unknown", "accuracy"):
            if of.get(name) is not None:
                self.log(f"{part}_{name}", float(of[name]), prog_bar=name == "h", sync_dist=True)

    def on_fit_end(self) -> None:
        """Says how the memory is, and where it has collapsed."""
        if self.domains.health is not None:
            self._say(f"memory: {self.domains.health}")

    def _begin(self) -> None:
        if not self.built or not self.trained:
            raise InputError("there is no trained network: run 'vision fit' with this configuration first")

    def on_test_start(self) -> None:
        """Checks that there is a trained network, and finds the cuts of all rules; a checkpoint's own is kept.

        Raises:
            InputError: there is no trained network.
        """
        self._begin()
        if self._kept_rule is None:
            self.domains.refresh()  # trained a moment ago
        self._cuts = self.domains.cuts()
        if self._kept_rule == self.rule:
            rejection = self.model.rejection
            self._cuts[self.rule] = Cut(rejection.weights.cpu().numpy().copy(), float(rejection.threshold))
        self.model.rejection.set(self._cuts[self.rule])

    def test_step(self, batch: DomainImages, batch_idx: int) -> None:
        """Adds a batch of target pictures to the measures."""
        self._measure(batch)

    def on_test_epoch_end(self) -> None:
        """Prints, logs and writes what was measured under every rule."""
        measured = self.scores.measure(self._cuts)
        self.scores.reset()
        data = self._data()
        counts = torch.bincount(self.model.clusters.matched.long(), minlength=2).tolist()
        report = {
            "method": self.method,
            "setting": data.setting,
            "rejects": data.rejects,
            "rule": self.rule,
            "classes": self.class_names,
            "clusters": {"with_a_class": counts[1], "without": counts[0]} if self.clusters_target else None,
            "memory": self.domains.health.as_dict() if self.domains.health is not None else None,
            "rules": measured,
        }
        log_json(self, "adaptation", report)
        self._log_measures("test", measured)
        if self.trainer.is_global_zero:
            print(f"\n{report_text(report)}", flush=True)

    # ------------------------------------------------------------------------------------------------ predictions
    def on_predict_start(self) -> None:
        """Checks that there is a trained network.

        Raises:
            InputError: there is none.
        """
        self._begin()

    def predict_step(self, batch: DomainImages, batch_idx: int) -> DomainPrediction:
        """Classes, or unknown, and the sub-prototypes that decided."""
        if not len(batch["index"]):
            empty = torch.zeros(0)
            none = empty.view(0, 0)
            return {"path": [], "classes": empty.long(), "scores": empty, "rows": none.long(), "weights": none}
        found = self.model.examine(batch["media"])
        above = self.model.rejection(found.scores)
        nothing = above.new_zeros(len(above), 0)
        return {
            "path": batch["path"],
            "classes": torch.where(above > 0, found.logits.argmax(dim=1), len(self.class_names)),
            "scores": above,
            "rows": found.addressed.rows if found.addressed is not None else nothing.long(),
            "weights": found.addressed.weights if found.addressed is not None else nothing,
        }

    def prediction_rows(self, outputs: DomainPrediction) -> tuple[list[str], list[list[str]]]:
        """The header and the rows of ``predictions.csv`` for what ``predict_step`` gave."""
        return prediction_rows(outputs, self.class_names)

    # ----------------------------------------------------------------------------------------------- checkpoints
    @property
    def record(self) -> DomainRecord:
        """What a checkpoint says of the network beside its weights."""
        return DomainRecord(
            self.backbone,
            self.feature,
            self.class_names,
            self.preprocessing,
            self.method,
            self.memory,
            self.width,
            self.decoder,
            self.rule,
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the record, so that ``vision infer`` needs the file alone, and the state of the search."""
        if self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            self.domains.refresh()  # in place: the tensors in the checkpoint are the network's
        if self.bank is not None:
            self.bank.flush()
        checkpoint[RECORD] = self.record.as_dict()
        checkpoint["search"] = {"found": list(self.domains.found), "consensus": self.domains.consensus}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Makes room for as many clusters as the checkpoint has.

        Raises:
            InputError: the checkpoint is none of this task, or has another network or other classes.
        """
        if RECORD not in checkpoint:
            raise InputError(
                "the checkpoint is not one of UniversalDomainAdaptation; start from it by model.checkpoint"
            )
        record, own = DomainRecord.from_dict(checkpoint[RECORD]), self.record
        for name in ("method", "backbone", "feature", "width", "memory", "decoder", "class_names"):
            if (theirs := getattr(record, name)) != (ours := getattr(own, name)):
                raise InputError(f"the checkpoint has {name} {theirs}, the configuration {ours}")
        self.model.clusters.resize(checkpoint["state_dict"], "model.clusters.")
        search = checkpoint.get("search", {})
        self.domains.found, self.domains.consensus = list(search.get("found", [])), search.get("consensus")
        self.trained, self._kept_rule = True, record.rule
        parts = {"online": self.online, "bank": self.bank}
        for key in [*checkpoint["state_dict"]]:
            if parts.get(key.split(".")[0], self) is None:
                del checkpoint["state_dict"][key]
