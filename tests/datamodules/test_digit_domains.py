"""The built-in digits in two domains: what the folders promise of the pictures."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from datamodules.builtin import resolve_root
from datamodules.builtin.digit_domains import FONTS, SOURCE_STYLES, TARGET_STYLES, write_styles
from datamodules.decoding import read_image


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FRUGAL_VISION_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def fonts(cache) -> Path:
    return resolve_root("builtin:fonts")


@pytest.fixture(scope="module")
def styles(cache) -> Path:
    return resolve_root("builtin:styles")


def files(domain: Path) -> list[Path]:
    return sorted(domain.glob("*/*.png"))


def style(file: Path) -> str:
    return file.stem.split("_", 1)[1]


def picture(file: Path) -> np.ndarray:
    return read_image(file)[..., 0].astype(float) / 255


def by_style(domain: Path, few: int = 20) -> dict[str, np.ndarray]:
    """Some pictures of each style."""
    of = {name: [file for file in files(domain) if style(file) == name] for name in {*map(style, files(domain))}}
    return {name: np.stack([picture(file) for file in found[:: len(found) // few]]) for name, found in of.items()}


def darkness_at_the_border(pictures: np.ndarray) -> float:
    return float(1 - np.median(np.concatenate([pictures[:, 0], pictures[:, -1]])))


# ------------------------------------------------------------------------------------------------------------ fonts
def test_printed_digits_are_as_many_in_every_font(fonts):
    counts = Counter((file.parent.name, style(file)) for file in files(fonts / "source"))
    assert counts == {(str(digit), font): 12 for digit in range(10) for font in FONTS}
    assert sum(counts.values()) == 1320


def test_handwritten_digits_are_all_of_scikit_learns(fonts):
    counts = Counter(file.parent.name for file in files(fonts / "target"))
    assert counts == {str(digit): count for digit, count in enumerate(np.bincount(load_digits().target))}
    assert {style(file) for file in files(fonts / "target")} == {"hand"}
    for number in (0, 100, 1796):
        file = fonts / "target" / str(load_digits().target[number]) / f"{number:04d}_hand.png"
        small = picture(file).reshape(8, 4, 8, 4).mean(axis=(1, 3))
        assert np.corrcoef(small.ravel(), load_digits().images[number].ravel())[0, 1] > 0.98


def test_both_domains_are_light_on_dark_and_of_one_size(fonts):
    for domain in ("source", "target"):
        pictures = np.stack([picture(file) for file in files(fonts / domain)[::60]])
        assert pictures.shape[1:] == (32, 32)
        assert pictures.max(axis=(1, 2)).min() > 0.8
        assert pictures.mean() < 0.5


def test_a_printed_digit_is_the_digit(fonts):
    """The mean of one font is most like the mean of another font's same digit."""

    def means(font: str) -> np.ndarray:
        return np.stack(
            [np.mean([picture(f) for f in (fonts / "source" / str(d)).glob(f"*_{font}.png")], 0) for d in range(10)]
        )

    first, second = (means(font).reshape(10, -1) for font in ("DejaVuSans", "cmss10"))
    alike = np.corrcoef(first, second)[:10, 10:]
    assert alike.argmax(axis=1).tolist() == list(range(10))


def test_copies_differ(fonts):
    copies = [picture(file) for file in sorted((fonts / "source" / "3").glob("*_cmr10.png"))]
    assert len({copy.tobytes() for copy in copies}) == 12


# ----------------------------------------------------------------------------------------------------------- styles
def test_halves_have_no_scan_in_common_and_together_have_all(styles):
    numbers = [[int(file.stem[:4]) for file in files(styles / domain)] for domain in ("source", "target")]
    assert [len(of) for of in numbers] == [898, 899]
    assert sorted(numbers[0] + numbers[1]) == list(range(1797))
    labels = load_digits().target
    for domain in ("source", "target"):
        assert all(labels[int(file.stem[:4])] == int(file.parent.name) for file in files(styles / domain))
        counts = np.bincount([int(file.parent.name) for file in files(styles / domain)])
        assert counts.tolist() == pytest.approx(np.bincount(labels) / 2, abs=1)


@pytest.mark.parametrize(("domain", "names"), [("source", SOURCE_STYLES), ("target", TARGET_STYLES)])
def test_styles_are_as_frequent_as_each_other(styles, domain, names):
    counts = Counter(style(file) for file in files(styles / domain))
    assert set(counts) == set(names)
    assert max(counts.values()) - min(counts.values()) <= 1


def test_what_the_styles_look_like(styles):
    source, target = by_style(styles / "source"), by_style(styles / "target")
    assert {name for name, of in (source | target).items() if darkness_at_the_border(of) < 0.5} == {"inverted"}
    ink = {name: of.mean() for name, of in source.items()}
    assert ink["thick"] > 1.2 * ink["plain"]
    assert target["blurred"].min() > 0.14
    assert target["blurred"].max() < 0.86

    def width(pictures: np.ndarray) -> float:
        columns = pictures.sum(axis=1) / pictures.sum(axis=(1, 2))[:, None]
        middle = (columns * np.arange(32)).sum(axis=1, keepdims=True)
        return float(np.sqrt((columns * (np.arange(32) - middle) ** 2).sum(axis=1)).mean())

    assert width(target["turned"]) < width(source["plain"]) < width(source["sheared"])
    corners = target["noisy"][:, :2, :2]
    assert corners.std() > source["plain"][:, :2, :2].std()


def test_they_are_the_same_each_time(styles, tmp_path):
    write_styles(tmp_path)
    again = files(tmp_path / "target") + files(tmp_path / "source")
    first = files(styles / "target") + files(styles / "source")
    assert [file.relative_to(tmp_path) for file in again] == [file.relative_to(styles) for file in first]
    assert all(one.read_bytes() == other.read_bytes() for one, other in zip(first, again, strict=True))
