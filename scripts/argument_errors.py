"""What jsonargparse says of a wrong flag or YAML key, in one line, with the right word where one is close."""

from __future__ import annotations

import importlib
import inspect
import re

import pytorch_lightning as pl

from vision.errors import did_you_mean
from vision.medic.weighting import Weighting

WINGS = ("vision", "datamodules", "tasks")


def _subclasses(base: type) -> list[str]:
    """Short names of the house's own classes of a kind."""
    children: list[type] = base.__subclasses__()
    own = [child for child in children if child.__module__.split(".")[0] in WINGS]
    found = [child.__name__ for child in own if not inspect.isabstract(child)]
    return found + [name for child in children for name in _subclasses(child)]


def _arguments_of(class_path: str) -> list[str]:
    module, _, name = class_path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
        # A class that hands on what it does not know takes its base's arguments too.
        owners = inspect.getmro(found) if inspect.isclass(found) else [found]
        parameters: list[inspect.Parameter] = []
        for owner in owners:
            parameters += inspect.signature(owner).parameters.values()
            if all(parameter.kind != parameter.VAR_KEYWORD for parameter in parameters[-1:]):
                break
    except (ImportError, AttributeError, ValueError):
        return []
    return [parameter.name for parameter in parameters if parameter.kind != parameter.VAR_KEYWORD]


def _flags() -> list[str]:
    trainer = (f"--trainer.{name}" for name in inspect.signature(pl.Trainer).parameters)
    return [
        *trainer,
        "--trainer",
        "--config",
        "--model",
        "--data",
        "--ckpt_path",
        "--seed_everything",
        "--print_config",
    ]


def explain(message: str) -> str:
    """One line for a message of jsonargparse's."""
    text = " ".join(message.split())
    if match := re.search(r"[Uu]nrecognized arguments: (\S+)", text):
        flag = match[1].split("=")[0]
        return f"no flag {flag}{did_you_mean(flag, _flags())}"
    if matches := re.findall(r"[Oo]ption '([^']+)' is not accepted", text):
        option = matches[-1]
        paths = re.findall(r"class_path[ =:]*'?\"?([\w.]+)", text)
        after = re.findall(r"is not accepted.*?class_path='([\w.]+)'", text)
        owner = after[-1] if after and "Callable" in text else (paths[0] if paths else "")
        what = f"{owner.rpartition('.')[2]} has no argument '{option}'" if owner else f"no argument '{option}'"
        return what + did_you_mean(option, _arguments_of(owner))
    if match := re.search(r"does not accept option '([\w.]+)'", text):
        known = [flag.removeprefix("--") for flag in _flags()]
        # A misspelt section takes its keys along; the section is what is wrong.
        section = match[1].split(".")[0]
        wrong = match[1] if section in ("trainer", "model", "data") else section
        return f"no key '{wrong}'{did_you_mean(wrong, known)}"
    if match := re.search(r"Parser key \"(\w+)\".*Not a valid subclass of (\w+)", text):
        return f"{match[1]}: expected class_path and init_args of a {match[2]}"
    if match := re.search(r"Expected a dot import path string: (\S+)", text):
        bases = [Weighting] if "weighting" in text else [pl.LightningModule, pl.LightningDataModule]
        names = [name for base in bases for name in _subclasses(base)]
        close = did_you_mean(match[1], names)
        if "." in match[1]:
            return f"no class '{match[1]}'{close}"
        return f"no class '{match[1]}'{close}; there are {', '.join(names)}"
    if match := re.search(r"Parser key \"([\w.]+)\": Expected an? (.+?)\. Got value: (.+?)(?: - | Given |$)", text):
        return f"{match[1]}: expected {_type_name(match[2])}, got {match[3]}"
    if match := re.search(r"File does not exist: '([^']+)'", text):
        return f"no such file: {match[1]}"
    return text[:400]


def _type_name(text: str) -> str:
    return re.sub(r"<class '([\w.]+)'>", r"\1", text)
