"""What is wrong with a training on two domains, or with what follows it, is said in one line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from tasks.checkpointing import SafeCheckpointIO
from tests.command import error_line, vision
from tests.tasks.stripes import DIRECTIONS, run, write_config, write_domain, write_domains
from vision.errors import InputError
from vision.memspm.checkpoint import load_adapted


@pytest.fixture(scope="module", autouse=True)
def one_thread_of_the_command():
    """Or the command would share the cores out, which so small networks lose by."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = write_domains(tmp_path_factory.mktemp("domains"))
    write_domain(root / "renamed", DIRECTIONS[:2], 8.0, seed=0)
    shutil.copytree(root / "source" / "steep", root / "renamed" / "upright")
    write_domain(root / "more", (*DIRECTIONS[:2], DIRECTIONS[3]), 6.5, seed=3, number=15)
    for file in sorted((root / "source").rglob("*.png")):
        broken = root / "broken" / file.relative_to(root / "source")
        broken.parent.mkdir(parents=True, exist_ok=True)
        broken.write_bytes(b"no picture")
    return root


@pytest.fixture(scope="module")
def trained(root, tmp_path_factory) -> Path:
    """The configuration of a training that is finished."""
    config = write_config(tmp_path_factory.mktemp("trained") / "pair.yaml", root, max_epochs=2)
    run(config)
    return config


@pytest.fixture(scope="module")
def checkpoint(trained) -> Path:
    (file,) = trained.parent.rglob("best.ckpt")
    return file


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--model.memory.top_k 9", "memory.top_k is 9, there are 8 items"),
        ("--model.memory.top_k 0", "memory.top_k must be at least 1, got 0"),
        ("--model.memory.top_k 1 --model.memory.address paper", "memory.top_k must be at least 2 with address paper"),
        ("--model.memory.subs 0", "memory.subs must be at least 1, got 0"),
        ("--model.memory.temperature 0", "memory.temperature must be positive, got 0"),
        ("--model.memory.items 73", "memory.items is 73, there are 72 pictures to begin it from"),
        ("--model.rule one_vs_all", "rule: 'one_vs_all' needs what memspm has not; it has none, half_log_c"),
        ("--model.rule usage --model.method dcc", "rule: 'usage' needs what dcc has not"),
        ("--model.rule margin", "rule must be auto or one of none"),
        ("--model.select best", "select must be last or consensus, got best"),
        ("--model.select consensus --model.method dance", "select: dance has no clusters"),
        ("--model.width 0", "width must be at least 1, got 0"),
        ("--model.losses.cdd=-1", "losses.cdd must be at least 0, got -1"),
        ("--model.clustering.every 0", "clustering.every must be at least 1, got 0"),
        ("--model.clustering.smallest 40", "clustering.smallest is 40, the largest K 9 (3 classes, max_search 3)"),
        (
            "--model.clustering.smallest 40 --model.clustering.max_search 20",
            "36 target pictures, at least 40 are needed to look for 40 clusters",
        ),
        ("--model.decoder 14", "the decoder draws 14x14 pixels: set data.thumbnails to that"),
        ("--model.decoder 15 --data.thumbnails 15", "decoder draws 14, 28, 56, 112 pixels, or 0 for none; got 15"),
        ("--model.trainable all", "trainable: HOG has nothing to train as 'all'"),
        (
            "--model.backbone test_resnet --model.trainable norm --data.image_size 32 --data.cache CACHE",
            "data.cache needs a frozen encoder: set model.trainable to none",
        ),
        ("--model.backbone resnet51", "no network called 'resnet51'"),
        ("--model.feature projected", "feature: 'hog_32' has no projection as CLIP's networks have; take pooled"),
        ("--model.checkpoint none.pt", "none.pt: no such checkpoint file"),
        ("--model.checkpoint none.pt --model.pretrained true", "give either pretrained or checkpoint, not both"),
        ("--data.source broken --data.max_unreadable 0.9", "none of the pictures of the source can be read"),
        ("--data.source broken", "images cannot be read, more than data.max_unreadable"),
    ],
)
def test_settings(root, tmp_path, flags, message):
    config = write_config(tmp_path / "pair.yaml", root, max_epochs=1)
    given = flags.replace("CACHE", str(tmp_path / "features")).split()
    assert message in error_line("fit", "--config", config, *given)


def test_an_encoders_file_that_does_not_fit(root, tmp_path):
    config = write_config(tmp_path / "pair.yaml", root, model={"backbone": "test_resnet"}, data={"image_size": 32})
    file = tmp_path / "other.pt"
    torch.save(torch.nn.Linear(2, 2).state_dict(), file)
    line = error_line("fit", "--config", config, "--model.checkpoint", file)
    assert f"{file}: does not fit the network: missing conv1.0.weight" in line


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--data.source renamed", "has class_names ['flat', 'rising', 'steep'], the configuration ['flat', 'rising',"),
        ("--model.method dcc", "has method memspm, the configuration dcc"),
        ("--model.width 33", "has width 32, the configuration 33"),
        ("--model.memory.subs 3", "has memory MemoryOptions(items=8, subs=2"),
        ("--model.decoder 14 --data.thumbnails 14", "has decoder 0, the configuration 14"),
        ("--model.backbone test_resnet --data.image_size 32", "has backbone hog_32, the configuration test_resnet"),
    ],
)
@pytest.mark.parametrize("verb", ["fit", "test"])
def test_a_checkpoint_of_another_configuration(trained, checkpoint, verb, flags, message):
    assert message in error_line(verb, "--config", trained, "--ckpt_path", checkpoint, *flags.split())


def test_a_training_does_not_go_on_with_other_pictures(trained, checkpoint):
    longer = ("--ckpt_path", checkpoint, "--trainer.max_epochs", "3")
    line = error_line("fit", "--config", trained, *longer, "--data.target", "more")
    assert "a training goes on with the data that it was begun with" in line


def test_a_checkpoint_of_another_task(trained, checkpoint, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    content["classifier"] = content.pop("domains")
    SafeCheckpointIO().save_checkpoint(content, tmp_path / "classifier.ckpt")
    for verb in ("fit", "test", "predict"):
        line = error_line(verb, "--config", trained, "--ckpt_path", tmp_path / "classifier.ckpt")
        assert "not one of UniversalDomainAdaptation; start from it by model.checkpoint" in line
    with pytest.raises(InputError, match="holds another kind of network; 'vision infer efficientvit' uses it"):
        load_adapted(tmp_path / "classifier.ckpt")


def test_a_data_module_of_one_domain(trained, root):
    line = error_line("fit", "--config", trained, "--data", "ImageFolder", "--data.root", root / "source")
    assert "this model needs a data module of two domains, such as Domains" in line


def test_before_a_training(root, tmp_path):
    config = write_config(tmp_path / "untrained.yaml", root)
    for verb in ("test", "predict"):
        assert "run 'vision fit' with this configuration first" in error_line(verb, "--config", config)


def test_a_few_pictures_that_cannot_be_read_are_passed_over(root, tmp_path):
    for domain in ("source", "target"):
        shutil.copytree(root / domain, tmp_path / domain)
        (tmp_path / domain / "flat" / "03.png").write_bytes(b"no picture")
    config = write_config(tmp_path / "pair.yaml", tmp_path, max_epochs=1)
    finished = vision("fit", "--config", config, "--data.max_unreadable", "0.1")
    assert finished.returncode == 0, finished.stderr
    (table,) = tmp_path.rglob("unreadable.csv")
    assert {line.split(",")[0] for line in table.read_text().splitlines()[1:]} == {
        str(tmp_path / domain / "flat" / "03.png") for domain in ("source", "target")
    }
