"""``vision infer memspm``: answers, candidate new classes, the page of sub-prototypes, and what can be wrong."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from scripts.infer.inputs import image_batches, image_files
from scripts.infer.prototype_page import Nearest, items_of_classes, thumbnail
from tests import chromium
from tests.command import error_line, vision
from tests.tasks import stripes
from tests.tasks.quick import trainer
from tests.tasks.stripes import task, write_domain, write_domains
from vision.classifiers import ClassifierRecord
from vision.memspm.addressing import Addressed
from vision.memspm.checkpoint import load_adapted
from vision.memspm.memory import MemoryOptions, SubPrototypeMemory, used
from vision.memspm.model import AdaptationNetwork
from vision.memspm.rejection import RULES

KNOWN = ["flat", "rising", "steep"]


class Page(HTMLParser):
    """The tags of a page, and the text within each element that has an id."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._style = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._style = tag == "style"

    def handle_data(self, data: str) -> None:
        if not self._style:
            self.text += data

    def handle_endtag(self, tag: str) -> None:
        self._style = False

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def cards(self) -> set[str]:
        return {str(of["id"]).removeprefix("sub-") for of in self.all("article")}


class Inferred(NamedTuple):
    """What a command left: its table, its JSON file, what it said, and the file of its page."""

    rows: list[dict[str, str]]
    content: dict[str, Any]
    said: str
    page: Path


def infer(out: Path, *arguments: str | Path) -> Inferred:
    finished = vision("infer", "memspm", "--out", out, *arguments)
    assert finished.returncode == 0, finished.stderr
    with (out / "predictions.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    return Inferred(rows, json.loads((out / "predictions.json").read_text()), finished.stdout, out / "prototypes.html")


def changed(checkpoint: Path, file: Path, state: dict[str, torch.Tensor] | None = None, **record: Any) -> Path:
    """A checkpoint in which some of what the record or the weights say is another."""
    content = torch.load(checkpoint, weights_only=True)
    content["domains"] |= record
    content["state_dict"] |= {f"model.{key}": value for key, value in (state or {}).items()}
    torch.save(content, file)
    return file


class Trained(NamedTuple):
    """A network that has been trained: its checkpoint, its pictures, and the task's predictions for them."""

    best: Path
    data: Path
    predictions: dict[str, list[str]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Trained:
    """For stripes, and it can draw; ``falling`` ones are unknown to it."""
    folder = tmp_path_factory.mktemp("memspm")
    root = write_domains(folder / "data")
    adapted = task(width=32, decoder=14)
    domains = stripes.data(root, batch_size=12, thumbnails=14, epoch_steps=10)
    fitting = trainer(folder)
    fitting.fit(adapted, datamodule=domains, weights_only=False)
    fitting.save_checkpoint(folder / "best.ckpt")
    batches = fitting.predict(adapted, datamodule=domains)
    assert batches is not None
    rows = [row for batch in batches for row in adapted.prediction_rows(batch)[1]]
    return Trained(folder / "best.ckpt", root, {row[0]: row[1:] for row in rows})


@pytest.fixture(scope="module")
def data(trained) -> Path:
    return trained.data


@pytest.fixture(scope="module")
def inferred(trained, data, tmp_path_factory) -> Inferred:
    (data / "target" / "flat" / "truncated.png").write_bytes((data / "target" / "flat" / "00.png").read_bytes()[:300])
    (data / "source" / "steep" / "empty.png").touch()
    given = ["--input", data / "target", "--checkpoint", trained.best, "--source", data / "source"]
    try:
        return infer(tmp_path_factory.mktemp("out"), *given, "--batch-size", "7")
    finally:
        (data / "target" / "flat" / "truncated.png").unlink()
        (data / "source" / "steep" / "empty.png").unlink()


# ------------------------------------------------------------------------------------------------------ the answers
def test_the_checkpoint_alone_answers_as_the_task_does(trained, inferred):
    read = [row for row in inferred.rows if not row["error"]]
    assert {row["path"] for row in read} == trained.predictions.keys()
    for row in read:
        name, score, made_of = trained.predictions[row["path"]]
        assert row["class"] == name
        assert float(row["score"]) == pytest.approx(float(score), abs=2e-4)
        assert len(row["sub_prototypes"].split()) == len(made_of.split()) == 3
        assert (row["class"] == "unknown") == (float(row["score"]) <= 0)
    right = [row["class"] == _truth(row["path"]) for row in read]
    assert sum(right) > 0.8 * len(right)


def _truth(path: str) -> str:
    name = Path(path).parent.name
    return name if name in KNOWN else "unknown"


def test_what_decided_is_named(trained, data, inferred):
    network, record = load_adapted(trained.best)
    files = image_files([str(data / "target")])
    (batch,) = image_batches(files, record.preprocessing, len(files))
    with torch.no_grad():
        found = network.examine(batch["image"]).addressed
    assert found is not None
    for row, path in enumerate(batch["path"]):
        (told,) = [of for of in inferred.rows if of["path"] == path]
        names = [f"{place // 2}.{place % 2}" for place in found.rows[row].tolist()]
        weights = [f"{weight:.2f}" for weight in found.weights[row].tolist()]
        assert told["sub_prototypes"].split() == [":".join(of) for of in zip(names, weights, strict=True)]
    (image,) = [of for of in inferred.content["images"] if of["path"] == batch["path"][0]]
    assert sum(of["weight"] for of in image["sub_prototypes"]) == pytest.approx(1, abs=1e-5)


def test_unknown_pictures_are_of_candidate_new_classes(inferred):
    unknown = [row for row in inferred.rows if row["class"] == "unknown"]
    new = Counter(row["new_class"] for row in unknown)
    assert "" not in new
    assert not any(row["new_class"] for row in inferred.rows if row["class"] != "unknown")
    told = {of["name"]: of["images"] for of in inferred.content["new_classes"]}
    assert told == new
    assert [*told] == [f"new {number}" for number in range(1, len(told) + 1)]
    counts = Counter(row["class"] for row in inferred.rows if row["class"] in KNOWN)
    for name, count in counts.items():
        assert re.search(rf"^ +{count}  {name}$", inferred.said, re.MULTILINE)
    assert re.search(rf"^ +{len(unknown)}  unknown in {len(told)} candidate new class", inferred.said, re.MULTILINE)
    for of in inferred.content["new_classes"]:
        assert of["mistaken_for"] in KNOWN
        assert f"{of['name']}, most often mistaken for {of['mistaken_for']}" in inferred.said


def test_unknown_kinds_are_told_apart(trained, tmp_path):
    """Pictures of two kinds, which a network without a cut that it could be above calls unknown."""
    write_domain(tmp_path / "two", ["rising", "falling"], 6.0, seed=5, number=10)
    unreachable = torch.tensor(1e6, dtype=torch.float64)
    checkpoint = changed(trained.best, tmp_path / "none.ckpt", {"rejection.threshold": unreachable})
    found = infer(tmp_path / "out", "--input", tmp_path / "two", "--checkpoint", checkpoint)
    assert {row["class"] for row in found.rows} == {"unknown"}
    by_class = Counter((Path(row["path"]).parent.name, row["new_class"]) for row in found.rows)
    for name in ("rising", "falling"):
        others = {of for kind, of in by_class if kind != name}
        assert not {of for kind, of in by_class if kind == name} & others  # no candidate has both
    assert "20 picture" in Page(found.page.read_text()).text or len(found.content["new_classes"]) > 1


def test_what_cannot_be_read_is_left_out_and_told(data, inferred):
    truncated, empty = data / "target" / "flat" / "truncated.png", data / "source" / "steep" / "empty.png"
    (row,) = [row for row in inferred.rows if row["error"]]
    assert row["path"] == str(truncated)
    assert "truncated" in row["error"]
    assert row["class"] == row["new_class"] == ""
    assert [of["path"] for of in inferred.content["unreadable"]] == [str(truncated)]
    assert f"unreadable, left out: {truncated}: " in inferred.said
    assert f"unreadable, left out of --source: {empty}: empty file (0 bytes)" in inferred.said
    assert f"vision: 36 of 37 images, results in {inferred.page.parent}" in inferred.said


def test_a_checkpoint_that_rejects_nothing(trained, data, tmp_path):
    state = {
        "rejection.weights": torch.zeros(4, dtype=torch.float64),
        "rejection.threshold": torch.tensor(-1.0, dtype=torch.float64),
    }
    checkpoint = changed(trained.best, tmp_path / "pda.ckpt", state, rule="none")
    found = infer(tmp_path / "out", "--input", data / "target", "--checkpoint", checkpoint)
    assert {row["class"] for row in found.rows} <= set(KNOWN)
    assert {row["score"] for row in found.rows} == {"1.0000"}
    assert "nothing is rejected" in found.said
    assert "nothing is rejected" in Page(found.page.read_text()).text


def test_a_network_without_a_memory_has_no_page(trained, data, tmp_path):
    checkpoint = without_memory(trained.best, tmp_path / "source_only.ckpt")
    found = infer(tmp_path / "out", "--input", data / "target" / "flat" / "00.png", "--checkpoint", checkpoint)
    assert [*found.rows[0]] == ["path", "class", "score", "new_class", "error"]
    assert not found.page.exists()
    line = error_line(
        *["infer", "memspm", "--input", data / "target", "--checkpoint", checkpoint],
        *["--out", tmp_path / "b", "--source", data / "source"],
    )
    assert line.endswith("is of source_only, which has no sub-prototypes to show")


def without_memory(checkpoint: Path, file: Path) -> Path:
    """A network of another method with the rest of the record."""
    content = torch.load(checkpoint, weights_only=True)
    network, record = load_adapted(checkpoint)
    torch.manual_seed(0)
    other = AdaptationNetwork(network.encoder, 324, len(KNOWN), "source_only", width=record.width)
    content["state_dict"] = {f"model.{key}": value for key, value in other.state_dict().items()}
    content["domains"] |= {"method": "source_only", "rule": "half_log_c", "decoder": 0}
    torch.save(content, file)
    return file


# ---------------------------------------------------------------------------------------------------------- the page
LOOK = """
const found = document.body.dataset;
found.undecoded = [...document.images].filter(image => image.naturalWidth === 0).length;
found.images = document.images.length;
found.overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
found.hidden = [...document.querySelectorAll("article")].filter(card => !card.getClientRects().length).length;
"""


@pytest.mark.parametrize("width", [1200, 400])
def test_the_page_in_a_browser(inferred, width):
    page = Page(chromium.render(inferred.page, width, LOOK))
    (body,) = page.all("body")
    assert body["data-undecoded"] == "0"
    assert int(body["data-images"] or 0) > 100
    assert body["data-overflow"] == "0"
    assert body["data-hidden"] == "0"


@pytest.mark.parametrize("dark", [False, True])
def test_the_page_follows_the_readers_colours(inferred, tmp_path, dark):
    chromium.screenshot(inferred.page, tmp_path / "page.png", 400, 600, dark)
    with Image.open(tmp_path / "page.png") as picture:
        pixels = np.asarray(picture)
    assert pixels[2, 2].max() < 40 if dark else pixels[2, 2].min() > 240


def test_the_page_needs_nothing_else(inferred):
    text = inferred.page.read_text(encoding="utf-8")
    assert "http:" not in text
    assert "https:" not in text
    assert not Page(text).all("script")
    assert {str(of["src"]).split(":")[0] for of in Page(text).all("img")} == {"data"}
    assert all(str(of["href"]).startswith("#") for of in Page(text).all("a"))
    assert all(max(int(of["width"] or 0), int(of["height"] or 0)) <= 64 for of in Page(text).all("img"))


def test_used_sub_prototypes_have_cards_and_unused_ones_are_flagged(trained, inferred, data, tmp_path):
    network, _ = load_adapted(trained.best)
    memory = network.memory
    assert memory is not None
    alive = (used(memory.source_usage) | used(memory.target_usage)).flatten()
    names = {f"{row // 2}.{row % 2}": bool(alive[row]) for row in range(16)}
    page = inferred.page.read_text()
    assert Page(page).cards == {name for name, lives in names.items() if lives}
    unused = {name for name, lives in names.items() if not lives}
    assert set(re.findall(r"<span>(\d+\.\d)</span>", page)) == unused
    assert f"{len(unused)} unused" in Page(page).text
    # And of a memory of which one item is all that is left:
    usage = torch.zeros(8, 2)
    usage[3] = 0.5
    state = {"memory.source_usage": usage, "memory.target_usage": usage}
    checkpoint = changed(trained.best, tmp_path / "dead.ckpt", state)
    page = infer(tmp_path / "out", "--input", data / "target", "--checkpoint", checkpoint).page.read_text()
    assert Page(page).cards == {"3.0", "3.1"}
    assert len(re.findall(r"<span>(\d+\.\d)</span>", page)) == 14
    assert "14 unused sub-prototypes" in Page(page).text


def test_items_stand_under_the_classes_of_their_source_pictures(inferred):
    page = inferred.page.read_text()
    sections = {of: re.search(rf'<section id="class-{i}".*?</section>', page, re.DOTALL) for i, of in enumerate(KNOWN)}
    for name, section in sections.items():
        assert section is not None, f"no item of class {name}"
        assert f"Class {name}" in section[0]
        shown = re.findall(r'title="([^"]*): weight', section[0])
        from_source = [Path(path).parent.name for path in shown if "/source/" in path]
        assert from_source.count(name) > 0.7 * len(from_source) > 0


def test_the_rule_and_drawings_are_on_the_page(trained, inferred):
    page = Page(inferred.page.read_text())
    rule = load_adapted(trained.best)[1].rule
    assert rule != "none"
    assert f"by the rule: {RULES[rule]}" in page.text
    drawn = [of for of in page.all("img") if str(of["alt"]).startswith("What the decoder draws")]
    assert len(drawn) == len(page.cards)


def test_without_source_pictures_the_page_shows_the_target_alone(trained, data, tmp_path):
    given = ["--input", data / "target", "--checkpoint", trained.best, "--images-a-prototype", "2"]
    page = infer(tmp_path / "out", *given).page.read_text()
    shown = re.findall(r'title="([^"]*): weight', page)
    assert shown
    assert not [path for path in shown if "/source/" in path]
    assert len(shown) <= 2 * len(Page(page).cards)
    assert "No source pictures were given" in Page(page).text
    assert 'id="class-0"' in page


def test_a_list_of_source_pictures_and_names_of_another_kind(trained, data, tmp_path):
    """Numbers of a list are called by the folders; a name of a file that is markup stays text."""
    numbers = {name: number for number, name in enumerate(reversed(KNOWN))}
    files = image_files([str(data / "source")])
    lines = [f"{path} {numbers[Path(path).parent.name]}" for path in files]
    (tmp_path / "source.txt").write_text("\n".join(lines))
    hostile = tmp_path / "<script>document.title='taken'<script>.png"
    hostile.write_bytes((data / "target" / "flat" / "00.png").read_bytes())
    given = ["--input", hostile, "--checkpoint", trained.best]
    of_list = infer(tmp_path / "a", *given, "--source", tmp_path / "source.txt").page.read_text()
    of_folder = infer(tmp_path / "b", *given, "--source", data / "source").page.read_text()
    assert of_list == of_folder
    assert not Page(of_list).all("script")


def test_the_nearest_are_the_heaviest_then_the_most_similar():
    nearest = Nearest(3)
    batches = [
        (["a", "b"], [[0, 1], [1, 0]], [[0.9, 0.1], [0.5, 0.5]], [[0.3, 0.3], [0.9, 0.2]]),
        (["c", "d"], [[0, 1], [0, 1]], [[0.5, 0.5], [1.0, 0.0]], [[0.8, 0.8], [0.1, 0.1]]),
    ]
    for paths, rows, weights, cosines in batches:
        nearest.add(
            paths, Addressed(torch.zeros(2, 4), torch.tensor(rows), torch.tensor(weights)), torch.tensor(cosines)
        )
    assert [path for path, _ in nearest.of(0)] == ["d", "a", "c"]  # b has c's weight, and a smaller cosine
    assert [path for path, _ in nearest.of(1)] == ["b", "c", "a"]  # d has none of it
    assert nearest.of(0)[1][1] == pytest.approx(0.9)
    assert nearest.of(2) == []


def test_what_items_stand_for():
    memory = SubPrototypeMemory(MemoryOptions(items=4, subs=2, top_k=1), 3)
    memory.source_usage.copy_(torch.tensor([[0.4, 0.3], [0.1, 0.0], [0.0, 0.005], [0.1, 0.095]]))
    memory.target_usage.copy_(torch.tensor([[0.0, 0.1], [0.3, 0.0], [0.1, 0.1], [0.2, 0.2]]))
    weights = np.zeros((8, 2))
    weights[0], weights[1] = (0, 3), (2, 0)  # mostly the second class, though no clear case: the source uses it most
    weights[2] = (9, 1)  # less used by the source than by the target, but by one class
    weights[5] = (1, 0)  # one class, and hardly ever
    weights[6], weights[7] = (3, 2), (2, 3)  # no class in particular
    assert items_of_classes(memory, weights).tolist() == [1, 0, -1, -1]


def test_thumbnails_are_small():
    noise = np.random.default_rng(0).integers(0, 256, (300, 500, 3), np.uint8)
    found = thumbnail(noise)
    assert (found.width, found.height) == (64, 38)
    assert found.uri.startswith("data:image/jpeg")
    assert len(found.uri) < 4000
    assert thumbnail(np.zeros((8, 8, 3), np.uint8)).uri.startswith("data:image/png")


# -------------------------------------------------------------------------------------------------------- bad input
def test_bad_input_is_one_line(trained, data, tmp_path):
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    (tmp_path / "no_pictures").mkdir()
    (tmp_path / "classes" / "flat").mkdir(parents=True)
    (tmp_path / "list.txt").write_text("")
    (tmp_path / "damaged.png").write_bytes((data / "target" / "flat" / "00.png").read_bytes()[:200])
    other = ClassifierRecord("hog_32", KNOWN, load_adapted(trained.best)[1].preprocessing).as_dict()
    torch.save({"state_dict": {}, "classifier": other}, tmp_path / "other.ckpt")
    torch.save({"w": torch.zeros(1)}, tmp_path / "plain.pt")
    write_domain(tmp_path / "foreign", ["flat", "falling"], 8.0, seed=3, number=1)

    def told(**flags: Any) -> str:
        given = {"input": data / "target", "checkpoint": trained.best, "out": tmp_path / "out", **flags}
        pairs = [(f"--{name.replace('_', '-')}", str(value)) for name, value in given.items()]
        return error_line("infer", "memspm", *[part for pair in pairs for part in pair])

    assert "other.ckpt: holds another kind of network; 'vision infer efficientvit' uses it" in told(
        checkpoint=tmp_path / "other.ckpt"
    )
    assert "text.ckpt: not a readable PyTorch checkpoint" in told(checkpoint=tmp_path / "text.ckpt")
    assert "plain.pt: not a checkpoint of UniversalDomainAdaptation" in told(checkpoint=tmp_path / "plain.pt")
    assert "missing.ckpt: no such checkpoint file" in told(checkpoint=tmp_path / "missing.ckpt")
    assert "--input: no images in" in told(input=tmp_path / "no_pictures")
    assert "none of 1 images could be read" in told(input=tmp_path / "damaged.png")
    assert "--images-a-prototype must be at least 1, got 0" in told(images_a_prototype=0)
    assert "--batch-size must be at least 1, got 0" in told(batch_size=0)
    assert "expected one folder a class, found no folders" in told(source=tmp_path / "no_pictures")
    assert "flat: the class folder has no images" in told(source=tmp_path / "classes")
    assert "list.txt: the list has no pictures" in told(source=tmp_path / "list.txt")
    assert "--source: no folder of class folders and no list" in told(source=tmp_path / "missing")
    assert "has no labels" in told(source=data / "source" / "flat")
    line = told(source=tmp_path / "foreign")
    assert f"{tmp_path / 'foreign'} has classes that {trained.best} does not have: falling" in line
    assert "it has flat, rising, steep" in line
