"""The ``vision`` command. Only what a verb needs is imported, when it is needed."""

from __future__ import annotations

import importlib.util
import io
import os
import sys
from collections.abc import Sequence

from scripts.systems import SYSTEMS
from vision import __version__
from vision.errors import InputError, did_you_mean

LIGHTNING_VERBS = {
    "fit": "train, from a configuration: vision fit --config configs/efficientvit/demo.yaml",
    "validate": "measure a checkpoint on the validation images",
    "test": "measure a checkpoint on the test images",
    "predict": "write a checkpoint's predictions for the test images",
}
OWN_VERBS = {
    "infer": "use a checkpoint on your own files: vision infer SYSTEM --input I --checkpoint C --out DIR",
    "export": "write a checkpoint as ONNX, float and int8: vision export SYSTEM --checkpoint C --out DIR",
    "bench": "measure the systems: vision bench [SYSTEM ...] --out DIR",
    "render": "write drawn words, or a list of pictures of words, as an LMDB: vision render --out DIR",
    "list": "the systems, their configurations, and the data that each needs",
}
VERBS = {**LIGHTNING_VERBS, **OWN_VERBS}


def _help() -> str:
    width = max(map(len, VERBS)) + 2
    verbs = "\n".join(f"  {verb:<{width}}{what}" for verb, what in VERBS.items())
    return f"""usage: vision [--debug] VERB ...

Computer vision under a budget of memory, compute and time.

verbs:
{verbs}

options:
  --help      this text; 'vision VERB --help' for a verb's own
  --version   the version
  --debug     the whole traceback of an error, and the libraries' own messages

systems: {", ".join(SYSTEMS)}
"""


def _hand_over(verb: str, arguments: Sequence[str]) -> None:
    """To ``scripts/<verb>/<system>.py``.

    Raises:
        InputError: there is no such system, or it has no such verb.
    """
    system = arguments[0] if arguments else ""
    if system in ("-h", "--help"):
        print(
            f"usage: vision {verb} SYSTEM ...\n\nsystems: {', '.join(SYSTEMS)}\n"
            f"'vision {verb} SYSTEM --help' has a system's options"
        )
        return
    if system not in SYSTEMS:
        raise InputError(f"{verb}: no system '{system}'{did_you_mean(system, SYSTEMS)}; there are {', '.join(SYSTEMS)}")
    able = [name for name in SYSTEMS if importlib.util.find_spec(f"scripts.{verb}.{name}")]
    if system not in able:
        raise InputError(f"{verb}: not for {system}; for {', '.join(able)}")
    importlib.import_module(f"scripts.{verb}.{system}").main(list(arguments[1:]))


def run(arguments: Sequence[str]) -> None:
    """Carries out a command; errors are raised.

    Raises:
        InputError: for whatever a user can put right.
    """
    verb = arguments[0] if arguments else "--help"
    if verb in ("-h", "--help"):
        print(_help(), end="")
    elif verb == "--version":
        print(__version__)
    elif verb in LIGHTNING_VERBS:
        from scripts.lightning import run_lightning

        run_lightning(list(arguments))
    elif verb in ("infer", "export"):
        _hand_over(verb, arguments[1:])
    elif verb == "bench":
        from scripts.bench.command import main as bench

        bench(list(arguments[1:]))
    elif verb == "render":
        from scripts.render import main as render

        render(list(arguments[1:]))
    elif verb == "list":
        from scripts.systems import print_systems

        print_systems()
    else:
        raise InputError(f"no verb '{verb}'{did_you_mean(verb, VERBS)}; there are {', '.join(VERBS)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The console command: its exit status is 0, or 2 for an error that a user can put right."""
    # Threads that wait by spinning steal the cores from the processes that decode images. Read by OpenMP when PyTorch
    # is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files may be no Unicode
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    if debug:
        given.remove("--debug")
    else:
        from scripts.quiet import quieten

        quieten()
    try:
        run(given)
    except InputError as error:
        if debug:
            raise
        print(f"vision: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except SystemExit as leaving:  # argparse's way to end --help and --print_config
        return int(leaving.code or 0)
    except KeyboardInterrupt:
        print("vision: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
