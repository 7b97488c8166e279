"""A user's own domains: every method on every pair of them, in each setting that has a split, with several seeds."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from pathlib import Path
from typing import cast

import yaml

from datamodules.domain_classes import published
from datamodules.domain_splits import Setting
from scripts.bench.memspm_runs import METHODS, Run, runs
from scripts.bench.results import Measured, Options
from vision.errors import InputError

SEEDS = (0, 1, 2)
QUICK = ("dcc", "memspm")


def settings_of(config: Path) -> list[Setting]:
    """The settings that a configuration may be run in: those of a published split that it names, else its own.

    Raises:
        InputError: the file is no configuration of two domains.
    """
    if not config.is_file():
        raise InputError(f"--config: no such configuration: {config}")
    try:
        data = yaml.safe_load(config.read_text(encoding="utf-8"))["data"]["init_args"]
        split, setting = data.get("split"), data.get("setting", "unida")
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError, KeyError, TypeError) as error:
        raise InputError(f"--config: {config} is no configuration of two domains (data.init_args)") from error
    of_data = published()["splits"].get(split) if isinstance(split, str) else None
    return cast("list[Setting]", [*of_data] if of_data is not None else [setting])


def sweep(options: Options, config: Path, domains: Sequence[str]) -> Measured:
    """Every method on every ordered pair of domains; finished trainings are kept beside the result.

    Args:
        options: of the benchmark; the quick form has DCC and MemSPM on one seed.
        config: names backbone and data.
        domains: folders or lists below the configuration's ``data.root``.

    Raises:
        InputError: there are fewer than two domains, or the configuration is none.
    """
    if len(set(domains)) < 2:
        raise InputError(f"--domains: at least two are needed, got {', '.join(domains) or 'none'}")
    methods, seeds = (QUICK, SEEDS[:1]) if options.quick else (METHODS, SEEDS)
    jobs = [
        Run(f"{Path(one).stem} to {Path(other).stem}", setting, method, seed, config.absolute(), (one, other))
        for setting in settings_of(config)
        for one, other in permutations(dict.fromkeys(domains), 2)
        for method in methods
        for seed in seeds
    ]
    order = {job[:4]: number for number, job in enumerate(jobs)}
    rows = sorted(
        runs(jobs, options.kept), key=lambda row: order[row["pair"], row["setting"], row["contender"], row["seed"]]
    )
    setting = (
        f"{config.name}, all methods with its options, seeds {', '.join(map(str, seeds))}, two trainings at a time, "
        "one thread each, tested after the last step."
    )
    left_out = ["methods other than DCC and MemSPM, and further seeds"] if options.quick else []
    return Measured(setting, rows, [], left_out)
