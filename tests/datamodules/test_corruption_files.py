"""The layouts of CIFAR-10-C and ImageNet-C: read, written, and broken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.corruption_files import CifarC, ImageNetC, write_cifar_c, write_imagenet_c
from datamodules.corruptions import CORRUPTIONS, corrupt, image_seed
from datamodules.decoding import read_image
from datamodules.listing import list_class_folders
from tests.images import write_images
from vision.errors import InputError

NOISE, FOG = "gaussian_noise", "fog"


def _message(call, folder) -> str:
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix(f"{folder}/")


def _pictures(number: int, side: int = 12) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (number, side, side, 3), dtype=np.uint8)


# -------------------------------------------------------------------------------------------------------- CIFAR-10-C
@pytest.fixture
def arrays(tmp_path):
    """Two corruptions of three images, as published; each value tells the row."""
    rows = np.arange(15, dtype=np.uint8)
    np.save(tmp_path / "labels.npy", np.tile(np.array([4, 2, 9], np.uint8), 5))
    for offset, name in ((0, FOG), (100, "spatter")):
        np.save(tmp_path / f"{name}.npy", np.broadcast_to(rows[:, None, None, None] + offset, (15, 10, 12, 3)))
    np.save(tmp_path / "original.npy", rows)
    return tmp_path


def test_rows_of_a_severity(arrays):
    data = CifarC(arrays)
    assert data.names == (FOG, "spatter")
    assert len(data) == 3
    assert data.images(FOG, 1)[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert data.images("spatter", 5)[:, 9, 11, 2].tolist() == [112, 113, 114]
    assert data.labels(4).tolist() == [4, 2, 9]
    assert data.labels(4).dtype == np.int64
    assert isinstance(data.images(FOG, 2).base, np.memmap)


def test_what_a_folder_does_not_have(arrays):
    data = CifarC(arrays)
    with pytest.raises(InputError, match=r"no corruption 'fogg' \(did you mean 'fog'\?\); it has fog, spatter"):
        data.images("fogg", 1)
    with pytest.raises(InputError, match=r"severity must be 1, 2, 3, 4 or 5, got 0"):
        data.images(FOG, 0)
    with pytest.raises(InputError, match=r"severity must be 1, 2, 3, 4 or 5, got 6"):
        data.labels(6)


def _save(array: object):
    return lambda file: np.save(file, array, allow_pickle=True)


def _cut(keep: int):
    return lambda file: file.write_bytes(file.read_bytes()[:keep])


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("labels", Path.unlink, "cannot be read (No such file or directory)"),
        ("labels", _save(np.zeros(14, int)), "expected 5 labels for each image, found 14 in all"),
        ("labels", _save(np.zeros(0, int)), "expected 5 labels for each image, found 0 in all"),
        ("labels", _save(np.zeros(15)), "expected whole numbers (5 * N,), found float64 (15,)"),
        ("labels", _save(np.zeros((15, 1), int)), "expected whole numbers (5 * N,), found int64 (15, 1)"),
        ("labels", _save(np.array([{}] * 15)), "not a complete .npy array (Array can't be memory-mapped: Python obj"),
        ("fog", _save(np.array([{}] * 15)), "not a complete .npy array (Array can't be memory-mapped: Python obj"),
        ("fog", _cut(0), "empty file (0 bytes)"),
        ("fog", _cut(5), "not a complete .npy array ("),
        ("fog", _cut(100), "not a complete .npy array ("),
        ("fog", _cut(2000), "not a complete .npy array (mmap length is greater than file size"),
        ("fog", lambda file: file.write_bytes(b"PK" * 100), "not a complete .npy array (the magic string is not corr"),
        ("fog", _save(np.zeros((15, 12, 12, 3))), "expected uint8 (5 * N, H, W, 3), found float64 (15, 12, 12, 3)"),
        ("fog", _save(np.zeros((15, 3, 12, 12), np.uint8)), "expected uint8 (5 * N, H, W, 3), found uint8 (15, 3, 1"),
        ("fog", _save(np.zeros((14, 8, 8, 3), np.uint8)), "expected as many images of each of 5 severities, found 14"),
        ("fog", _save(np.zeros((20, 8, 8, 3), np.uint8)), "has 20 images, labels.npy has 15 labels"),
        ("spatter", _save(np.zeros((15, 8, 8, 3), np.uint8)), "has the shape (15, 8, 8, 3), fog.npy has (15, 10, 12"),
    ],
)
def test_damaged_arrays_are_named(arrays, name, damage, message):
    damage(arrays / f"{name}.npy")
    assert _message(lambda: CifarC(arrays), arrays).startswith(f"{name}.npy: {message}")


def test_folders_without_arrays_are_named(tmp_path):
    assert _message(lambda: CifarC(tmp_path / "x"), tmp_path) == "x: no such folder"
    (tmp_path / "labels.npy").touch()
    with pytest.raises(InputError, match=r"expected files such as gaussian_noise.npy, found none"):
        CifarC(tmp_path)


def test_arrays_there_and_back(tmp_path):
    images, labels = _pictures(4), np.array([3, 0, 1, 0])
    files = write_cifar_c(images, labels, tmp_path / "made", "cifar", seed=5)
    assert [file.name for file in files] == [f"{name}.npy" for name in CORRUPTIONS]
    data = CifarC(tmp_path / "made")
    assert data.names == CORRUPTIONS
    for name in CORRUPTIONS:
        for severity in (1, 5):
            assert data.labels(severity).tolist() == labels.tolist()
            for index in range(4):
                expected = corrupt(images[index], name, severity, image_seed(5, name, index), "cifar")
                assert np.array_equal(data.images(name, severity)[index], expected)


def test_finished_arrays_are_kept(tmp_path):
    images, labels = _pictures(2), np.array([0, 1])
    write_cifar_c(images, labels, tmp_path, "cifar", 0, [NOISE])
    written = (tmp_path / f"{NOISE}.npy").stat().st_mtime_ns
    assert write_cifar_c(images, labels, tmp_path, "cifar", 0, [NOISE, FOG]) == [tmp_path / f"{FOG}.npy"]
    assert (tmp_path / f"{NOISE}.npy").stat().st_mtime_ns == written
    assert len(list(tmp_path.iterdir())) == 4


def test_an_interrupted_array_leaves_nothing(tmp_path):
    images, labels = _pictures(2), np.array([0, 1])
    (tmp_path / "ice").mkdir()
    (tmp_path / "ice/broken.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"frost_folder: .*broken.png"):
        write_cifar_c(images, labels, tmp_path / "made", "cifar", 0, [FOG, "frost"], tmp_path / "ice")
    assert sorted(file.name for file in (tmp_path / "made").iterdir()) == ["fog.npy", "labels.npy", "made_from.json"]


def test_data_of_two_kinds_is_not_mixed(tmp_path, arrays):
    images, labels = _pictures(2), np.array([0, 1])
    made = tmp_path / "made"
    write_cifar_c(images, labels, made, "cifar", 0, [FOG])
    others = {"suite": "imagenet"}, {"seed": 1}, {"images": _pictures(3)[1:]}, {"labels": labels[::-1]}
    for other in others:
        arguments = {"images": images, "labels": labels, "suite": "cifar", "seed": 0, **other}
        with pytest.raises(InputError, match=r'made: has images made from \{"suite": "cifar", "seed": 0, .*, not from'):
            write_cifar_c(folder=made, corruptions=[NOISE], **arguments)
    with pytest.raises(InputError, match=r"has images of fog, spatter that were not made here"):
        write_cifar_c(images, labels, arrays, "cifar", 0)


def test_arrays_that_do_not_go_together(tmp_path):
    images, labels = _pictures(2), np.array([0, 1])
    for arguments, message in (
        ((images / 255, labels), "images must be uint8 (N, H, W, 3), got float64 (2, 12, 12, 3)"),
        ((images[:0], labels[:0]), "images must be uint8 (N, H, W, 3), got uint8 (0, 12, 12, 3)"),
        ((images, labels[:1]), "labels must be whole numbers (2,), got int64 (1,)"),
    ):
        assert _message(lambda pair=arguments: write_cifar_c(*pair, tmp_path / "x", "cifar", 0), tmp_path) == message
    with pytest.raises(InputError, match=r"no corruption 'spatter'"):
        write_cifar_c(images, labels, tmp_path / "x", "cifar", 0, ["spatter"])
    assert not (tmp_path / "x").exists()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot be written \(.*\)$"):
        write_cifar_c(images, labels, tmp_path / "file", "cifar", 0)


# -------------------------------------------------------------------------------------------------------- ImageNet-C
@pytest.fixture
def listing(tmp_path):
    """Two images of each of three classes, 16 pixels a side."""
    return list_class_folders(write_images(tmp_path / "clean", 2, side=16))


def test_images_there_and_back(tmp_path, listing):
    made = tmp_path / "made"
    files = write_imagenet_c(listing, made, "imagenet", 3, [NOISE, FOG, "contrast"])
    assert len(files) == 3 * 5 * 6
    data = ImageNetC(made)
    assert data.names == (NOISE, FOG, "contrast")
    found = data.listing(FOG, 2)
    assert found.class_names == listing.class_names
    assert found.targets == listing.targets
    assert found.paths[3] == str(made / "fog/2/green/001.JPEG")
    expected = corrupt(read_image(listing.paths[3]), FOG, 2, image_seed(3, FOG, 3))
    Image.fromarray(expected).save(tmp_path / "expected.jpg", quality=85)
    assert Path(found.paths[3]).read_bytes() == (tmp_path / "expected.jpg").read_bytes()
    with Image.open(found.paths[3]) as image:
        assert [layer[1:3] for layer in image.layer] == [(2, 2), (1, 1), (1, 1)]  # colour of half the size


def test_finished_images_are_kept(tmp_path, listing):
    made = tmp_path / "made"
    write_imagenet_c(listing, made, "imagenet", 0, [FOG])
    gone = made / "fog/4/red/001.JPEG"
    content = gone.read_bytes()
    gone.unlink()
    assert write_imagenet_c(listing, made, "imagenet", 0, [FOG]) == [gone]
    assert gone.read_bytes() == content
    with pytest.raises(InputError, match=r"has images made from .*\"seed\": 0.* not from .*\"seed\": 1"):
        write_imagenet_c(listing, made, "imagenet", 1, [FOG])


def test_two_images_of_one_name_are_named(tmp_path, listing):
    Image.new("RGB", (16, 16)).save(tmp_path / "clean/red/000.bmp")
    twice = list_class_folders(tmp_path / "clean")
    with pytest.raises(InputError, match=r"red/000.png: would be written as red/000.JPEG, as .*red/000.bmp is"):
        write_imagenet_c(twice, tmp_path / "made", "imagenet", 0)


def _published(root: Path, places: list[str]) -> Path:
    for place in places:
        write_images(root / place, 2, side=8)
        for file in (root / place).rglob("*.png"):
            file.rename(file.with_suffix(".JPEG"))
    return root


def test_archives_are_found_where_they_were_unpacked(tmp_path):
    root = _published(tmp_path, ["noise/gaussian_noise/5", "extra/saturate/5", "blur/glass_blur/1", "fog/5"])
    data = ImageNetC(root)
    assert data.names == (NOISE, "glass_blur", FOG, "saturate")
    assert data.listing("saturate", 5).paths[0] == str(root / "extra/saturate/5/blue/000.JPEG")
    assert data.listing(FOG, 5).paths[0] == str(root / "fog/5/blue/000.JPEG")
    with pytest.raises(InputError, match=r"noise/gaussian_noise/3: no such folder of images"):
        data.listing(NOISE, 3)
    with pytest.raises(InputError, match=r"no corruption 'glass_blurr' \(did you mean 'glass_blur'\?\); it has gauss"):
        data.listing("glass_blurr", 1)
    with pytest.raises(InputError, match=r"severity must be"):
        data.listing(FOG, 6)


def test_classes_have_the_given_indices(tmp_path):
    data = ImageNetC(_published(tmp_path, ["fog/5"]))
    found = data.listing(FOG, 5, ["red", "grey", "green", "blue"])
    assert found.targets == [3, 3, 2, 2, 0, 0]
    with pytest.raises(InputError, match=r"class folders that the training images do not have: green"):
        data.listing(FOG, 5, ["red", "blue"])


def test_a_list_chooses_images_and_their_order(tmp_path):
    _published(tmp_path, ["fog/5"])
    files = tmp_path / "some.txt"
    files.write_text("red/001.JPEG\nblue/000.JPEG\n\n")
    found = ImageNetC(tmp_path, files).listing(FOG, 5)
    assert found.paths == [str(tmp_path / "fog/5" / name) for name in ("red/001.JPEG", "blue/000.JPEG")]
    assert found.targets == [2, 0]
    assert found.class_names == ["blue", "green", "red"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("red/001.JPEG\nred/009.JPEG\n", "some.txt:2: ROOT/fog/5 has no image 'red/009.JPEG'"),
        ("\n001.JPEG\n", "some.txt:2: expected <class>/<file>, found '001.JPEG'"),
        ("red/000.JPEG\nred/001.JPEG\nred/000.JPEG\n", "some.txt:3: 'red/000.JPEG' is listed in line 1 too"),
        ("\n", "some.txt: the list has no images"),
        (b"\xff\n", "some.txt: not a text in UTF-8"),
        (None, "some.txt: cannot be read (No such file or directory)"),
    ],
)
def test_bad_lists_are_named(tmp_path, text, message):
    _published(tmp_path, ["fog/5"])
    if text is not None:
        (tmp_path / "some.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    found = _message(lambda: ImageNetC(tmp_path, tmp_path / "some.txt").listing(FOG, 5), tmp_path)
    assert found.replace(str(tmp_path), "ROOT") == message


def test_folders_without_corruptions_are_named(tmp_path):
    assert _message(lambda: ImageNetC(tmp_path / "x"), tmp_path) == "x: no such folder"
    (tmp_path / "rain").mkdir()
    with pytest.raises(InputError, match=r"expected folders such as gaussian_noise/5, there or in blur, digital"):
        ImageNetC(tmp_path)
