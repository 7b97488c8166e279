"""Drawn words: the same for seed and index, from fonts that can spell them, as hard and as coloured as asked for."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest

from datamodules.text_fonts import embedded_faces
from datamodules.text_renderer import RenderOptions, render, renderer
from vision.errors import InputError

TOY = RenderOptions(alphabet="23456789", lengths=(0.4, 0.3, 0.3), colour="grey", size=(32, 64))
DEJAVU = Path(mpl.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")


def _words(options: RenderOptions, number: int = 400) -> list[str]:
    return [renderer(options).word(0, index) for index in range(number)]


def test_a_word_is_a_function_of_seed_and_index():
    first, word = render(3, 7, TOY)
    render(3, 8, TOY)
    again, same = render(3, 7, replace(TOY, count=5))  # a renderer of its own
    assert (first.shape, first.dtype) == ((32, 64, 3), np.uint8)
    assert word == same == renderer(TOY).word(3, 7)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, render(4, 7, TOY)[0])
    assert not np.array_equal(first, render(3, 8, TOY)[0])


def test_lengths_have_their_shares():
    words = _words(TOY, 1000)
    lengths = Counter(map(len, words))
    assert set(lengths) == {1, 2, 3}
    assert [lengths[length] / 1000 for length in (1, 2, 3)] == pytest.approx([0.4, 0.3, 0.3], abs=0.05)
    assert min(Counter("".join(words)).values()) > 0.08 * len("".join(words))  # of 0.125


def test_grey_is_light_on_dark():
    for index in range(20):
        picture, _ = render(0, index, replace(TOY, hard_share=0.0))
        assert (picture == picture[..., :1]).all()
        border = np.concatenate([picture[[0, -1]].ravel(), picture[:, [0, -1]].ravel()])
        assert np.median(border) < 110
        assert np.percentile(picture, 99) > np.median(border) + 60


def test_hard_words_are_bent_and_tilted():
    """Letters of hard words cover less of the picture's height than of clean ones, of the same words."""

    def covered(share: float) -> float:
        options = replace(TOY, hard_share=share, lengths=(0, 0, 1))
        pictures = [render(0, index, options)[0][..., 0] for index in range(40)]
        inked = [(picture > (int(picture.min()) + int(picture.max())) / 2).mean(axis=0) for picture in pictures]
        return float(np.mean([columns[columns > 0.1].mean() for columns in inked]))

    assert _words(replace(TOY, hard_share=0.0), 40) == _words(replace(TOY, hard_share=1.0), 40)
    assert covered(1.0) < 0.9 * covered(0.0)


def test_colours_differ_enough_to_read():
    options = RenderOptions(alphabet="WM", lengths=(1,), size=(64, 64), hard_share=0.0)
    for index in range(30):
        picture = render(0, index, options)[0].reshape(-1, 3).astype(float)
        spread = np.percentile(picture, 95, axis=0) - np.percentile(picture, 5, axis=0)
        assert spread.sum() > 120


def test_one_case_alphabets_are_drawn_in_several_cases():
    words = _words(RenderOptions(alphabet="36", lengths=(0, 0, 0, 1)))
    letters = [word for word in words if word.isalpha()]
    assert {"lower", "upper", "title"} == {
        kind for word in letters for kind in ("lower", "upper", "title") if getattr(word, f"is{kind}")()
    }
    words = _words(RenderOptions(alphabet="abC", lengths=(0, 0, 0, 1)))
    assert set("".join(words)) == set("abC")


def test_words_of_a_file(tmp_path):
    file = tmp_path / "words.txt"
    file.write_text("Street\ncafé\n\nx-y\nExit\n", encoding="utf-8")
    options = RenderOptions(words=str(file), word_share=1.0)
    assert {word.lower() for word in _words(options, 60)} == {"street", "exit"}
    mixed = Counter(word.lower() in ("street", "exit") for word in _words(replace(options, word_share=0.5)))
    assert 0.4 < mixed[True] / 400 < 0.6
    file.write_text("café\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"rendered.words: .*words.txt has no word of the alphabet"):
        render(0, 0, replace(options, seed=1))


def test_fonts_spell_what_they_have():
    files, opencv = embedded_faces()
    assert len(files) >= 20
    assert len(opencv) == 4
    faces = {Path(face.name).stem: face for face in files}
    assert "ж" in faces["DejaVuSans"].characters
    assert "<" not in faces["cmr10"].characters  # TeX has another mark in its place
    assert not any(stem.startswith(("LastResort", "cmsy", "STIXSiz")) for stem in faces)
    drawn = renderer(RenderOptions(alphabet="жщ<Ж"))
    for index in range(100):
        _, word, face = drawn._choose(np.random.default_rng((0, index)))
        assert face.characters.issuperset(word)
    for face in (*files, *opencv):
        left, right = (face.draw(word).astype(int).sum(axis=0) for word in ("I", "WW"))
        assert np.count_nonzero(right) > 2 * np.count_nonzero(left) > 0


def test_a_folder_of_fonts(tmp_path):
    with pytest.raises(InputError, match=r"no font has '.' \(U\+E123\); name a folder of fonts"):
        render(0, 0, RenderOptions(alphabet="a\ue123"))
    (tmp_path / "of mine").mkdir()
    with pytest.raises(InputError, match=r"fonts: .* has no fonts \(.ttf, .otf, .ttc\)"):
        render(0, 0, RenderOptions(fonts=str(tmp_path)))
    (tmp_path / "of mine/a b.TTF").write_bytes(DEJAVU.read_bytes())
    names = [face.name for face in renderer(RenderOptions(fonts=str(tmp_path), seed=1)).faces]
    assert str(tmp_path / "of mine/a b.TTF") in names
    (tmp_path / "of mine/bad.ttf").write_bytes(b"no font")
    with pytest.raises(InputError, match=r"fonts: .*bad.ttf is not a font that can be read"):
        render(0, 0, RenderOptions(fonts=str(tmp_path), seed=2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "rendered: count and test_count must be at least 1, got 0, 1000"),
        ({"seed": -1}, "rendered.seed must be in [0, 2147483648), got -1"),
        ({"hard_share": 1.5}, "rendered.hard_share must be in [0, 1], got 1.5"),
        ({"lengths": (0.0, 0.0)}, "rendered.lengths must be shares of 1, 2, ... characters, got [0.0, 0.0]"),
        ({"lengths": ()}, "rendered.lengths must be shares of 1, 2, ... characters, got []"),
        ({"colour": "blue"}, "rendered.colour must be grey or any, got blue"),
        ({"size": (2, 64)}, "rendered.size must be at least 4x4 pixels, got 2x64"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(InputError) as caught:
        RenderOptions(**options)
    assert str(caught.value) == message
