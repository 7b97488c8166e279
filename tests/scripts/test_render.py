"""``vision render``: what it writes is what a training reads, and what it was given."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from PIL import Image

from datamodules import TextImages
from datamodules.text_lmdb import LmdbWords, open_lmdb
from datamodules.text_renderer import RenderOptions, render
from scripts.render import main
from vision.errors import InputError
from vision.text import CHARSETS


def _words(folder) -> list[tuple[bytes, str]]:
    """Bytes and labels as they are stored."""
    with open_lmdb(folder).begin() as transaction:
        numbers = range(1, int(transaction.get(b"num-samples")) + 1)
        return [(transaction.get(b"image-%09d" % i), transaction.get(b"label-%09d" % i).decode()) for i in numbers]


def _error(*arguments: str) -> str:
    with pytest.raises(InputError) as caught:
        main(arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_drawn_words_are_written_as_they_are_drawn(tmp_path, capsys):
    out = tmp_path / "a folder" / "words"
    main(["--out", str(out), "--count", "5", "--charset", "23456789", "--lengths", "0.4", "0.3", "0.3",
          "--level", "hard", "--colour", "grey", "--size", "16", "32", "--seed", "3"])  # fmt: skip
    assert capsys.readouterr().out == f"vision: 5 words are in {out}\n"
    options = RenderOptions(alphabet="23456789", lengths=(0.4, 0.3, 0.3), hard_share=1.0, colour="grey", size=(16, 32))
    for index, (data, label) in enumerate(_words(out)):
        picture, word = render(3, index, options)
        assert label == word
        assert np.array_equal(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB), picture)
    data = TextImages(str(tmp_path), val="a folder", image_size=(16, 32), num_workers=0)
    data.setup("validate")
    assert [text for batch in data.val_dataloader() for text in batch["text"]] == [label for _, label in _words(out)]


def test_a_list_becomes_an_lmdb_of_the_same_bytes_and_labels(tmp_path, capsys):
    files = {"a b.png": "Hello, World!", "ünï.jpg": "Straße", "c.png": "中文"}
    folder = tmp_path / "listed"
    folder.mkdir()
    for number, (name, _) in enumerate(files.items()):
        picture = Image.fromarray(np.random.default_rng(number).integers(0, 256, (9, 20, 3), np.uint8))
        picture.save(folder / name)
    rows = [f"{name}\t{label}\n" for name, label in files.items()]
    (folder / "labels.tsv").write_text("".join([*rows, "c.png\n", "gone.png\tx\n"]), encoding="utf-8")
    expected = [((folder / name).read_bytes(), label) for name, label in files.items()]
    for number, source in enumerate((folder, folder / "labels.tsv")):
        out = tmp_path / str(number)
        main(["--from", str(source), "--out", str(out)])
        assert _words(out) == expected
    assert capsys.readouterr().out.splitlines()[1] == (
        f"vision: 3 words are in {out}, 1 without a label left out, 1 unreadable left out"
    )
    stored = LmdbWords(out, CHARSETS["36"], 25)
    assert [stored.encoded(index) for index in range(len(stored.labels))] == [data for data, _ in expected[:2]]


def test_errors_are_one_line_and_leave_nothing(tmp_path):
    out = tmp_path / "out"
    assert _error("--out", str(out), "--charset", "abca") == "charset 'abca': 'a' is there twice"
    assert _error("--out", str(out), "--count", "0").startswith("rendered: count and test_count must be at least 1")
    assert _error("--out", str(out), "--from", str(tmp_path)).startswith("--from: expected a list or a folder with")
    assert _error("--out", str(out), "--from", "x.tsv", "--seed", "1").startswith("render: --seed is for drawn words")
    missing = _error("--out", str(out), "--from", str(tmp_path / "x.tsv"))
    assert missing == f"{tmp_path}/x.tsv: the list cannot be read (No such file or directory)"
    assert _error("--level", "hard") == "render: the following arguments are required: --out"
    (tmp_path / "labels.tsv").write_text("empty.png\tword\n")
    (tmp_path / "empty.png").touch()
    assert _error("--out", str(out), "--from", str(tmp_path)) == f"{out}: there are no words to write"
    assert not (out / "data.mdb").exists()
    main(["--out", str(out), "--count", "1"])
    again = _error("--out", str(out), "--count", "1")
    assert again == f"{out}/data.mdb exists already; name another folder or delete it"
    (tmp_path / "file").touch()
    assert _error("--out", str(tmp_path / "file")).startswith(f"{tmp_path}/file/data.mdb: cannot be written (")
