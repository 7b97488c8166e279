"""What the sub-prototypes of a memory have learned, as one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

import scripts.report
from datamodules.decoding import UnreadableImageError, read_image
from scripts.report.images import Embedded
from vision.memspm.addressing import Addressed
from vision.memspm.checkpoint import DomainRecord
from vision.memspm.memory import SubPrototypeMemory, used
from vision.memspm.model import AdaptationNetwork
from vision.memspm.rejection import RULES

TEMPLATES = Path(scripts.report.__file__).parent
SIDE = 64  # pixels of the longer side of a thumbnail
JPEG_QUALITY = 75
PURE = 0.75  # of an item's source weight: from that on it is of one class, though the source uses it little
SELDOM = 0.1  # of an even share: an item that the source uses less stands for no class of the source
FADED = 0.25  # a picture with less weight shows a sub-prototype in part only

View = dict[str, Any]


class Nearest:
    """The pictures that a memory's sub-prototypes have the largest weights in, kept while pictures stream by.

    Args:
        most: of each sub-prototype.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.paths: dict[int, str] = {}
        self._seen = 0
        self._kept = np.zeros(0, [("row", "i8"), ("weight", "f4"), ("cosine", "f4"), ("picture", "i8")])

    def add(self, paths: Sequence[str], addressed: Addressed, cosines: Tensor) -> None:
        """Takes a batch in: ``B`` files, what they are made of, and ``(B, K)`` cosines to those sub-prototypes."""
        rows = addressed.rows.cpu().numpy()
        new = np.empty(rows.size, self._kept.dtype)
        new["row"], new["picture"] = rows.ravel(), np.repeat(self._seen + np.arange(len(paths)), rows.shape[1])
        new["weight"], new["cosine"] = addressed.weights.cpu().numpy().ravel(), cosines.cpu().numpy().ravel()
        together = np.concatenate([self._kept, new[new["weight"] > 0]])
        together = together[np.lexsort((-together["cosine"], -together["weight"], together["row"]))]
        _, first, counts = np.unique(together["row"], return_index=True, return_counts=True)
        place = np.arange(len(together)) - np.repeat(first, counts)
        self._kept = together[place < self.most]
        self.paths |= dict(enumerate(paths, start=self._seen))
        self.paths = {number: self.paths[number] for number in np.unique(self._kept["picture"]).tolist()}
        self._seen += len(paths)

    def of(self, row: int) -> list[tuple[str, float]]:
        """The files of a sub-prototype, the heaviest first (of equal weights the most similar), and their weights."""
        found = self._kept[self._kept["row"] == row]
        return [(self.paths[of["picture"].item()], float(of["weight"])) for of in found]


@dataclass
class Shown:
    """What pictures of one domain say of sub-prototypes.

    Attributes:
        nearest: their pictures.
        table: float64 ``(N * S, names)``: the weight that pictures of each class give each, or that have each answer.
    """

    nearest: Nearest
    table: NDArray[np.float64]

    def add(self, paths: Sequence[str], addressed: Addressed, cosines: Tensor, labels: Tensor) -> None:
        """Takes a batch in; see :meth:`Nearest.add`; ``labels`` is int64 ``(B,)``."""
        self.nearest.add(paths, addressed, cosines)
        places = (addressed.rows.cpu().numpy(), labels.cpu().numpy()[:, None])
        np.add.at(self.table, places, addressed.weights.double().cpu().numpy())


@dataclass(frozen=True)
class NewClass:
    """A class that unknown pictures may be of.

    Attributes:
        name: as in ``predictions.csv``.
        pictures: how many.
        mistaken_for: the class that most of them would have been given.
        share: of them.
        nearest: the files nearest to its center.
    """

    name: str
    pictures: int
    mistaken_for: str
    share: float
    nearest: Sequence[str]


@dataclass(frozen=True)
class Candidates:
    """Classes that unknown pictures may be of.

    Attributes:
        classes: the largest first.
        silhouettes: of the numbers of classes that were tried.
        known: how many pictures are not unknown.
    """

    classes: Sequence[NewClass]
    silhouettes: Mapping[int, float]
    known: int


def items_of_classes(memory: SubPrototypeMemory, table: NDArray[np.float64]) -> NDArray[np.int64]:
    """The class that each item stands for, ``(N,)``; -1 for items of the target alone.

    That is the class which most of an item's source weight comes from. Of the target alone is what the source uses
    less than the target, and then for no class in particular or hardly ever.

    Args:
        memory: whose usage is up to date.
        table: ``(N * S, C)``, the weight that source pictures of each class give each sub-prototype.
    """
    by_class = table.reshape(memory.options.items, memory.options.subs, -1).sum(axis=1)
    purity = by_class.max(axis=1) / np.maximum(by_class.sum(axis=1), 1e-12)
    source, target = (usage.sum(dim=1).cpu() for usage in (memory.source_usage, memory.target_usage))
    of_target = (source < target).numpy() & ((purity < PURE) | (source < SELDOM / len(source)).numpy())
    return np.where(of_target, -1, by_class.argmax(axis=1))


@dataclass
class _Thumbnails:
    """Small pictures as data URIs; each file is decoded once."""

    made: dict[str, Embedded | None] = field(default_factory=dict)

    def __call__(self, path: str) -> Embedded | None:
        if path not in self.made:
            try:
                self.made[path] = thumbnail(read_image(path))
            except UnreadableImageError:  # it was there a moment ago
                self.made[path] = None
        return self.made[path]


def thumbnail(pixels: NDArray[np.uint8]) -> Embedded:
    """uint8 RGB ``(H, W, 3)`` as a data URI of at most 64 pixels a side: PNG or JPEG, whichever is smaller."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    written = []
    for kind, options in (("png", {"optimize": True}), ("jpeg", {"quality": JPEG_QUALITY, "optimize": True})):
        buffer = io.BytesIO()
        picture.save(buffer, kind, **options)
        written.append(f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}")
    return Embedded(min(written, key=len), *picture.size)


def _shares(weights: NDArray[np.float64], names: Sequence[str]) -> list[tuple[str, float]]:
    """Names with their shares of the weights, the largest first; at most two, and none below a twentieth."""
    total = weights.sum()
    order = weights.argsort(kind="stable")[::-1][:2]
    return [(names[i], weights[i] / total) for i in order if total and weights[i] >= 0.05 * total]


class _Page:
    """Makes the template's view of a memory."""

    def __init__(
        self,
        network: AdaptationNetwork,
        record: DomainRecord,
        source: Shown | None,
        target: Shown,
        candidates: Candidates,
    ) -> None:
        assert network.memory is not None
        self.network, self.memory, self.record = network, network.memory, record
        self.source, self.target, self.candidates = source, target, candidates
        self.thumbnails = _Thumbnails()
        self.usage = [of.cpu().flatten() for of in (network.memory.source_usage, network.memory.target_usage)]
        self.alive = used(self.usage[0]) | used(self.usage[1])
        self.most = float(torch.stack(self.usage).max().clamp(min=1e-12))

    def name(self, row: int) -> str:
        return sub_prototype(row, self.record.memory.subs)

    @torch.no_grad()
    def _believed(self) -> NDArray[np.float64]:
        """What the classifier takes the sub-prototypes themselves for, in the place of the source's labels."""
        network, rows = self.network, self.memory.weight.flatten(0, 1).float()
        shares = network.classify(network.head.neck(rows)).softmax(dim=1).cpu()
        return (shares * self.usage[0][:, None]).double().numpy()

    def _item_classes(self) -> NDArray[np.int64]:
        table = self._believed()
        if self.source is not None:
            seen = self.source.table.reshape(self.record.memory.items, -1).sum(axis=1) > 0
            table = np.where(np.repeat(seen, self.record.memory.subs)[:, None], self.source.table, table)
        return items_of_classes(self.memory, table)

    @torch.no_grad()
    def _drawings(self) -> list[Embedded] | None:
        if self.network.decoder is None:
            return None
        drawn = []
        for rows in self.memory.weight.flatten(0, 1).float().split(64):
            pixels = (self.network.decoder(rows).clamp(0, 1) * 255).round().byte()
            drawn += [thumbnail(of) for of in pixels.permute(0, 2, 3, 1).cpu().numpy()]
        return drawn

    def _pictures(self, found: Sequence[tuple[str, float | None]]) -> list[View]:
        views = []
        for path, weight in found:
            if (embedded := self.thumbnails(path)) is not None:
                title = path if weight is None else f"{path}: weight {weight:.2f}"
                faded = weight is not None and weight < FADED
                views.append({"embedded": embedded, "name": Path(path).name, "title": title, "faded": faded})
        return views

    def _card(self, row: int, drawing: Embedded | None) -> View:
        sides = []
        for domain, shown, usage, names in (
            ("source", self.source, self.usage[0], self.record.class_names),
            ("target", self.target, self.usage[1], [*self.record.class_names, "unknown"]),
        ):
            sides.append(
                {
                    "domain": domain,
                    "given": shown is not None,
                    "usage": float(usage[row]),
                    "length": float(usage[row]) / self.most,
                    "shares": _shares(shown.table[row], names) if shown is not None else [],
                    "pictures": self._pictures(shown.nearest.of(row)) if shown is not None else [],
                }
            )
        return {"name": self.name(row), "sides": sides, "drawing": drawing}

    def _item(self, item: int, drawings: Sequence[Embedded] | None) -> View:
        rows = range(item * self.record.memory.subs, (item + 1) * self.record.memory.subs)
        alive = [row for row in rows if self.alive[row]]
        source, target = (float(usage[list(rows)].sum()) for usage in self.usage)
        return {
            "number": item,
            "usage": (source, target),
            "share": source / max(source + target, 1e-12),
            "cards": [self._card(row, None if drawings is None else drawings[row]) for row in alive],
            "unused": [self.name(row) for row in rows if not self.alive[row]],
        }

    def view(self) -> View:
        """What the template is given."""
        drawings, classes = self._drawings(), self._item_classes()
        items = [item for item in range(len(classes)) if self.alive.view(len(classes), -1)[item].any()]
        items.sort(key=lambda item: -float(self.usage[0].view(len(classes), -1)[item].sum()))
        groups = []
        for number, name in [*enumerate(self.record.class_names), (-1, "Of the target alone")]:
            own = [self._item(item, drawings) for item in items if classes[item] == number]
            own = own if number >= 0 else sorted(own, key=lambda item: -item["usage"][1])
            groups.append({"anchor": f"class-{number}" if number >= 0 else "target", "name": name, "members": own})
        return {
            "record": self.record,
            "rule": RULES[self.record.rule],
            "rejects": self.record.rule != "none",
            "has_source": self.source is not None,
            "known": self.candidates.known,
            "unknown": sum(of.pictures for of in self.candidates.classes),
            "used": int(self.alive.sum()),
            "unused": [self.name(row) for row in range(len(self.alive)) if not self.alive[row]],
            "classes": groups[:-1],
            "target": groups[-1],
            "candidates": [
                {"of": of, "pictures": self._pictures([(path, None) for path in of.nearest])}
                for of in self.candidates.classes
            ],
            "silhouette": self.candidates.silhouettes.get(len(self.candidates.classes)),
            "best_silhouette": max(self.candidates.silhouettes.values(), default=None),
        }


def sub_prototype(row: int, subs: int) -> str:
    """``item.sub``, the name of a sub-prototype."""
    return f"{row // subs}.{row % subs}"


def prototype_page(
    network: AdaptationNetwork, record: DomainRecord, source: Shown | None, target: Shown, candidates: Candidates
) -> str:
    """The page as HTML.

    Args:
        network: with a memory.
        record: of its checkpoint.
        source: labelled source pictures; without any, classes are the classifier's opinion of sub-prototypes.
        target: the pictures that were asked for, by their answers.
        candidates: classes that the unknown ones of them may be of.
    """
    templates = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = Markup((TEMPLATES / "style.css").read_text(encoding="utf-8"))  # noqa: S704  our own file
    view = _Page(network, record, source, target, candidates).view()
    return templates.get_template("prototypes.html").render(**view, style=style)
