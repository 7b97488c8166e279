"""What a task finds out about both domains as wholes: clusters, what they are of the source, and what is unknown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, cast

import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.utils.data import DataLoader

from tasks.domain_survey import CHUNK, Survey, survey
from vision.batches import DomainBatch, DomainImages
from vision.errors import InputError
from vision.memspm.addressing import Addressed
from vision.memspm.clustering import Clusters, spherical_kmeans
from vision.memspm.consensus import Matching, class_centers, match, search_clusters, settled
from vision.memspm.grouping import Grouping, group
from vision.memspm.health import Health, examine_memory
from vision.memspm.model import Examined
from vision.memspm.rejection import Cut, Rule, find_cut

if TYPE_CHECKING:
    from tasks.memspm import UniversalDomainAdaptation


class DomainData(Protocol):
    """What a task asks of its data module; :class:`datamodules.Domains` has it."""

    class_names: list[str]
    target_names: list[str]
    rejects: bool
    setting: str
    sizes: dict[str, int]
    thumbnails: int
    grouping: int
    source_classes: Tensor

    def domain_loader(self, domain: str) -> DataLoader[DomainImages]:
        """A whole domain as it is evaluated."""

    def regroup(self, source_groups: ArrayLike, target_groups: ArrayLike, clusters: ArrayLike) -> None:
        """Sets what the next steps draw by group."""


class BothDomains:
    """The source and the target of a task, of which its steps see a few pictures at a time.

    Args:
        task: has the network and the data module.

    Attributes:
        consensus: of the last matching of clusters and classes; None before the first.
        found: the number of clusters of each search.
        health: of the memory, when its cuts were last found; None without a memory.
        groups: of the last clustering in this process; None before.
    """

    def __init__(self, task: UniversalDomainAdaptation) -> None:
        self.task = task
        self.consensus: float | None = None
        self.found: list[int] = []
        self.health: Health | None = None
        self.groups: Grouping | None = None
        self._surveyed: dict[str, Survey] = {}
        self._fresh: tuple[int, float | None] | None = None

    @property
    def data(self) -> DomainData:
        """The task's data module."""
        return cast("DomainData", self.task.trainer.datamodule)  # type: ignore[attr-defined]

    def forget(self) -> None:
        """The features are made anew: the data or the encoder may be other ones."""
        self._surveyed, self._fresh = {}, None

    def survey(self, domain: str) -> Survey:
        """A whole domain as features; of a frozen encoder they are made once."""
        if domain in self._surveyed:
            return self._surveyed[domain]
        found = survey(self.task, self.task.model, self.data.domain_loader(domain), self.data.sizes[domain])
        if not len(found.index):
            raise InputError(f"none of the pictures of the {domain} can be read")
        if self.task.trainable == "none":
            self._surveyed[domain] = found
        return found

    @torch.no_grad()
    def examine(self, features: Tensor) -> Examined:
        """What the network says of many features, in evaluation mode."""
        training = self.task.model.training
        self.task.model.eval()
        with self.task.trainer.precision_plugin.forward_context():  # as the batches of an evaluation are
            parts = [self.task.model.examine(chunk) for chunk in features.split(CHUNK)]
        self.task.model.train(training)
        addressed = [part.addressed for part in parts if part.addressed is not None]
        together = Addressed(*(torch.cat(of) for of in zip(*addressed, strict=True))) if addressed else None
        together_of = [torch.cat(of) for of in zip(*(part[:3] for part in parts), strict=True)]
        return Examined(together_of[0], together_of[1], together_of[2], together)

    @torch.no_grad()
    def recluster(self) -> None:
        """Clusters the target, matches clusters and classes, and tells the data module which pictures go together."""
        classes, online = len(self.task.class_names), self.task.online
        if online is not None:
            if not online.seeded:
                return
            labels, codes, centers = self.data.source_classes, online.codes, online.centers
            matching = online.match(classes)
        else:
            source, target = self.survey("source"), self.survey("target")
            neck = self.examine(source.features).neck
            clusters, matching = self._searched(neck, source.labels, self.examine(target.features).neck)
            labels, codes, centers = source.spread(source.labels), target.spread(clusters.codes), clusters.centers
        self.consensus = matching.score
        groups = group(matching, labels.to(codes.device), codes, len(centers), self.task.clustering.least)
        self.groups = groups
        self.task.model.clusters.set(centers, groups.to_class)
        self.data.regroup(groups.source.cpu(), groups.target.cpu(), groups.clusters.cpu())

    def _searched(self, source: Tensor, labels: Tensor, target: Tensor) -> tuple[Clusters, Matching]:
        """Clusters of the target by k-means, and what they are of the source."""
        how, classes = self.task.clustering, len(self.task.class_names)
        if how.settle and settled(self.found):
            clusters = spherical_kmeans(target, len(self.task.model.clusters), start=self.task.model.clusters.centers)
            centers = class_centers(source, labels, classes)
            return clusters, match(source, labels, centers, target, clusters.codes, clusters.centers)
        found = search_clusters(
            source, labels, classes, target, how.interval, how.max_search, how.rule, how.smallest, how.restarts
        )
        self.found.append(len(found.clusters.centers))
        return found.clusters, found.matching

    def relabel(self, batch: DomainBatch) -> None:
        """Gives what a step has drawn by group its present groups; steps are drawn some time ahead of a clustering."""
        if self.groups is None or batch["grouping"] == self.data.grouping:
            return
        of_part = {
            "aligned_source": self.groups.source,
            "aligned_target": self.groups.target,
            "clustered": self.groups.clusters,
        }
        for name, groups in of_part.items():
            part: DomainImages = batch[name]  # type: ignore[literal-required]
            part["group"] = groups.to(part["index"].device)[part["index"]]
            kept = part["group"] >= 0
            for key in ("media", "index", "group", "thumbnail"):
                part[key] = part[key][kept]

    @torch.no_grad()
    def refresh(self) -> None:
        """Brings the memory's usage and the cut up to date with the network, unless no step was made since."""
        place = (self.task.trainer.global_step, self.consensus)
        if self._fresh == place:
            return
        self._fresh = place
        if (memory := self.task.model.memory) is not None:
            found = []
            for domain in ("source", "target"):
                addressed = self.examine(self.survey(domain).features).addressed
                assert addressed is not None
                found.append(addressed)
            memory.source_usage.copy_(memory.usage(found[0]))
            memory.target_usage.copy_(memory.usage(found[1]))
        self.task.model.rejection.set(self.cuts()[self.task.rule])

    @torch.no_grad()
    def cuts(self) -> dict[Rule, Cut]:
        """Where each rule cuts, from the whole target, with the memory's usage as it is; looks at its health too."""
        if (memory := self.task.model.memory) is not None:
            source = self.survey("source")
            addressed = self.examine(source.features).addressed
            assert addressed is not None
            self.health = examine_memory(memory, addressed, source.labels)
        scores = self.examine(self.survey("target").features).scores
        return {rule: find_cut(rule, scores) for rule in self.task.rules}
