"""``vision infer memspm``: classes of pictures of another domain, "unknown" for what has none, and why."""

from __future__ import annotations

from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from datamodules.decoding import read_image
from datamodules.domain_classes import number_classes
from datamodules.domain_listing import LISTS, read_domain
from scripts.arguments import Parser
from scripts.devices import usable_device
from scripts.infer.inputs import image_files, output_folder, readable_batches
from scripts.infer.outputs import require_some, say_what_was_done, write_results
from scripts.infer.prototype_page import Candidates, Nearest, NewClass, Shown, prototype_page, sub_prototype
from vision.errors import InputError, shorten
from vision.memspm.checkpoint import DomainRecord, load_adapted
from vision.memspm.model import AdaptationNetwork, Examined
from vision.memspm.novel import NovelClasses, suggest_classes
from vision.memspm.rejection import RULES
from vision.pictures import BAD, INK, MUTED, Picture, contact_sheet

MOST_PICTURES = 60
NEW_PICTURES = 18  # of a candidate new class
MOST_CLASSES = 20  # that the terminal is told of
UNKNOWN = "unknown"


class Answers(NamedTuple):
    """What was found of the readable pictures, in their order.

    Attributes:
        paths: ``n`` files.
        classes: int64 ``(n,)``, the best class of each, also of unknown ones.
        scores: float64 ``(n,)``, how far above the cut; unknown is what is not above 0.
        rows: int64 ``(n, K)``, the sub-prototypes, the heaviest first; ``(n, 0)`` without a memory.
        weights: ``(n, K)``, theirs.
        unknown: ``(unknown, width)``, of length 1: of unknown pictures what is clustered.
    """

    paths: list[str]
    classes: NDArray[np.int64]
    scores: NDArray[np.float64]
    rows: NDArray[np.int64]
    weights: NDArray[np.float32]
    unknown: Tensor

    @property
    def rejected(self) -> NDArray[np.bool_]:
        """Which are unknown, ``(n,)``."""
        return ~(self.scores > 0)


def _parser() -> Parser:
    parser = Parser(
        prog="vision infer memspm",
        description="Classify pictures of the target domain, or call them unknown: writes predictions.csv and "
        "predictions.json, with candidate new classes for the unknown ones, contact_sheet.png (the closest to the cut "
        "first), and of MemSPM's networks prototypes.html: what each sub-prototype of the memory has learned.",
    )
    add = parser.add_argument
    add("--input", nargs="+", required=True, metavar="I", help="image files, folders or globs")
    add("--checkpoint", required=True, metavar="C", help="of 'vision fit'")
    add("--out", required=True, metavar="DIR", help="folder for the results")
    add(
        "--source",
        metavar="S",
        help="labelled source pictures for the page: a folder with one folder a class, or a list as in training",
    )
    add("--batch-size", type=int, default=32, metavar="B", help="images at a time (default 32)")
    add("--images-a-prototype", type=int, default=9, metavar="N", help="of either domain, on the page (default 9)")
    add("--num-workers", type=int, default=0, metavar="N", help="processes that decode (default 0)")
    add("--device", default=None, help="cpu, cuda, cuda:1 (default: a GPU where there is one)")
    return parser


def source_pictures(source: str, record: DomainRecord, checkpoint: str) -> dict[str, int]:
    """The files of ``--source`` with their classes, as indices into the checkpoint's.

    Raises:
        InputError: there are none, they have no labels, or classes that the checkpoint does not have.
    """
    place = Path(source).absolute()
    if not place.is_dir() and not (place.is_file() and place.suffix in LISTS):
        raise InputError(f"--source: no folder of class folders and no list ({', '.join(LISTS)}): {source}")
    pictures = read_domain(place.parent, place.name, "source")
    if pictures.labels is None:
        raise InputError(
            f"--source: {pictures.place} has no labels; expected one folder a class, or a list with labels"
        )
    names, (labels,) = number_classes([pictures], None)
    assert labels is not None
    own = {name: number for number, name in enumerate(record.class_names)}
    if foreign := [names[label] for label in np.unique(labels) if names[label] not in own]:
        raise InputError(
            f"--source: {pictures.place} has classes that {checkpoint} does not have: {shorten(foreign)}; it has "
            f"{shorten(record.class_names)}"
        )
    return {path: own[names[label]] for path, label in zip(pictures.paths, labels, strict=True)}


class Examiner:
    """A network that examines files.

    Args:
        network: on its device.
        record: of its checkpoint.
        options: the flags.
    """

    def __init__(self, network: AdaptationNetwork, record: DomainRecord, options: Namespace) -> None:
        self.network, self.record, self.options = network, record, options

    @torch.inference_mode()
    def _examined(
        self, files: Sequence[str], unreadable: dict[str, str]
    ) -> Iterator[tuple[list[str], Examined, Tensor]]:
        """For every batch its files, what the network says, and ``(B, K)`` cosines to what they are made of."""
        device, how, given = next(self.network.parameters()).device, self.record, self.options
        batches = readable_batches(files, how.preprocessing, given.batch_size, given.num_workers, unreadable)
        for batch in batches:
            features = self.network.encode(batch["image"].to(device)).float()
            found = self.network.examine(features)
            if not bool(torch.isfinite(found.logits).all()):
                raise InputError(f"{given.checkpoint}: the network's predictions are NaN or infinite")
            cosines = torch.zeros(0)
            if self.network.memory is not None and found.addressed is not None:
                chosen = self.network.memory.weight.float().flatten(0, 1)[found.addressed.rows]
                cosines = F.cosine_similarity(features[:, None], chosen, dim=2)
            yield batch["path"], found, cosines

    def shown(self, names: int) -> Shown:
        """Room for what pictures say of the sub-prototypes."""
        memory = self.record.memory
        return Shown(Nearest(self.options.images_a_prototype), np.zeros((memory.items * memory.subs, names)))

    def answer(self, files: Sequence[str], unreadable: dict[str, str]) -> tuple[Answers, Shown]:
        """Answers for target pictures, and by their answers what they say of the sub-prototypes.

        Raises:
            InputError: nothing could be read.
        """
        paths: list[str] = []
        parts: list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]] = []
        shown = self.shown(len(self.record.class_names) + 1)
        for read, found, cosines in self._examined(files, unreadable):
            best, above = found.logits.argmax(dim=1), self.network.rejection(found.scores)
            made_of = above.new_zeros(len(read), 0).long(), above.new_zeros(len(read), 0).float()
            if found.addressed is not None:
                made_of = found.addressed.rows, found.addressed.weights
                answers = best.where(above > 0, len(self.record.class_names))
                shown.add(read, found.addressed, cosines, answers)
            paths += read
            parts.append((best, above, *made_of, found.neck[~(above > 0)]))
        require_some(len(paths), files, unreadable)
        *together, unknown = (torch.cat(of) for of in zip(*parts, strict=True))
        classes, scores, rows, weights = (of.cpu().numpy() for of in together)
        return Answers(paths, classes, scores, rows, weights, unknown), shown

    def survey(self, labelled: dict[str, int], unreadable: dict[str, str]) -> Shown:
        """What labelled source pictures say of the sub-prototypes.

        Raises:
            InputError: nothing could be read.
        """
        shown = self.shown(len(self.record.class_names))
        read = 0
        for paths, found, cosines in self._examined([*labelled], unreadable):
            assert found.addressed is not None
            shown.add(paths, found.addressed, cosines, torch.tensor([labelled[path] for path in paths]))
            read += len(paths)
        require_some(read, [*labelled], unreadable)
        return shown


# ------------------------------------------------------------------------------------------------------ the results
def candidates(answers: Answers, novel: NovelClasses, class_names: Sequence[str]) -> Candidates:
    """The candidate new classes with what a person needs to judge them."""
    unknown = np.flatnonzero(answers.rejected)
    codes, cosines = novel.codes.cpu().numpy(), (answers.unknown @ novel.centers.T).cpu().numpy()
    classes = []
    for number in range(len(novel.centers)):
        own = np.flatnonzero(codes == number)
        counts = np.bincount(answers.classes[unknown[own]], minlength=len(class_names))
        nearest = own[cosines[own, number].argsort(kind="stable")[::-1][:NEW_PICTURES]]
        classes.append(
            NewClass(
                f"new {number + 1}",
                len(own),
                class_names[int(counts.argmax())],
                counts.max() / len(own),
                [answers.paths[row] for row in unknown[nearest]],
            )
        )
    return Candidates(classes, novel.silhouettes, int((~answers.rejected).sum()))


def sheet(answers: Answers, names: Sequence[str]) -> Picture:
    """The pictures that are closest to the cut."""
    chosen = np.abs(answers.scores).argsort(kind="stable")[:MOST_PICTURES]
    captions = [
        [(Path(answers.paths[row]).name, MUTED), (f"{names[row]} {answers.scores[row]:+.2f}", colour)]
        for row in chosen
        for colour in [BAD if answers.rejected[row] else INK]
    ]
    return contact_sheet([np.asarray(read_image(answers.paths[row])) for row in chosen], captions)


def _made_of(answers: Answers, row: int, subs: int) -> list[tuple[str, float]]:
    found = zip(answers.rows[row].tolist(), answers.weights[row].tolist(), strict=True)
    return [(sub_prototype(place, subs), weight) for place, weight in found if weight > 0]


def _write(
    folder: Path,
    record: DomainRecord,
    answers: Answers,
    names: Sequence[str],
    new: Sequence[str],
    found: Candidates,
    unreadable: Mapping[str, str],
) -> None:
    has_memory = record.method == "memspm"
    header = ["path", "class", "score", *(["sub_prototypes"] if has_memory else []), "new_class", "error"]
    rows: list[list[str]] = []
    images: list[dict[str, Any]] = []
    for row, path in enumerate(answers.paths):
        made_of = _made_of(answers, row, record.memory.subs)
        cells = [" ".join(f"{name}:{weight:.2f}" for name, weight in made_of)] if has_memory else []
        rows.append([path, names[row], f"{answers.scores[row]:.4f}", *cells, new[row], ""])
        image: dict[str, Any] = {"path": path, "class": names[row], "score": round(float(answers.scores[row]), 6)}
        if has_memory:
            image["sub_prototypes"] = [{"id": name, "weight": round(weight, 6)} for name, weight in made_of]
        if new[row]:
            image["new_class"] = new[row]
        images.append(image)
    rows += [[path, *[""] * (len(header) - 2), reason] for path, reason in unreadable.items()]
    content = {
        "method": record.method,
        "rule": record.rule,
        "classes": record.class_names,
        "images": images,
        "new_classes": [
            {"name": of.name, "images": of.pictures, "mistaken_for": of.mistaken_for, "share": round(of.share, 4)}
            for of in found.classes
        ],
        "silhouettes": {str(number): round(value, 4) for number, value in found.silhouettes.items()},
        "unreadable": [{"path": path, "reason": reason} for path, reason in unreadable.items()],
    }
    write_results(folder, content, header, rows, sheet(answers, names))


def _say(record: DomainRecord, answers: Answers, found: Candidates) -> None:
    """How many pictures are of which class."""
    unknown = int(answers.rejected.sum())
    counts = Counter(record.class_names[number] for number in answers.classes[~answers.rejected])
    for name, count in counts.most_common(MOST_CLASSES):
        print(f"{count:7,}  {name}")
    if len(counts) > MOST_CLASSES:
        rest = counts.most_common()[MOST_CLASSES:]
        print(f"{sum(count for _, count in rest):7,}  in {len(rest)} more classes")
    if record.rule == "none":
        print("nothing is rejected: the network was trained in a setting without unknown classes, or with rule none")
        return
    kinds = f" in {len(found.classes)} candidate new class{'es' if len(found.classes) != 1 else ''}" if unknown else ""
    print(f"{unknown:7,}  {UNKNOWN}{kinds} ({RULES[record.rule]})")
    for of in found.classes:
        print(f"{of.pictures:15,}  {of.name}, most often mistaken for {of.mistaken_for} ({of.share:.0%})")


def main(arguments: list[str]) -> None:
    """Answers for the pictures and writes the results.

    Raises:
        InputError: for whatever a user can put right; no picture could be read.
    """
    options = _parser().parse_args(arguments)
    if options.images_a_prototype < 1:
        raise InputError(f"--images-a-prototype must be at least 1, got {options.images_a_prototype}")
    files = image_files(options.input)
    network, record = load_adapted(options.checkpoint)
    if options.source is not None and network.memory is None:
        raise InputError(f"--source: {options.checkpoint} is of {record.method}, which has no sub-prototypes to show")
    labelled = source_pictures(options.source, record, options.checkpoint) if options.source is not None else None
    folder = output_folder(options.out)
    examiner = Examiner(network.to(usable_device(options.device, ("cpu", "cuda"))), record, options)
    unreadable: dict[str, str] = {}
    answers, target = examiner.answer(files, unreadable)
    novel = suggest_classes(answers.unknown)
    found = candidates(answers, novel, record.class_names)
    best = zip(answers.classes.tolist(), answers.rejected.tolist(), strict=True)
    names = [UNKNOWN if rejected else record.class_names[number] for number, rejected in best]
    new = np.full(len(names), "", dtype=object)
    new[answers.rejected] = [found.classes[code].name for code in novel.codes.tolist()]
    _write(folder, record, answers, names, new.tolist(), found, unreadable)
    if network.memory is not None:
        of_source: dict[str, str] = {}
        source = examiner.survey(labelled, of_source) if labelled is not None else None
        page = prototype_page(network, record, source, target, found)
        try:
            # Names of files and folders can hold what UTF-8 cannot.
            (folder / "prototypes.html").write_bytes(page.encode("utf-8", errors="replace"))
        except OSError as error:
            raise InputError(f"--out: {folder} cannot be written ({error.strerror})") from error
        for path, reason in of_source.items():
            print(f"vision: unreadable, left out of --source: {path}: {reason}")
    _say(record, answers, found)
    say_what_was_done(len(answers.paths), files, unreadable, folder)
