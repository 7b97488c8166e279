"""An argument parser whose errors are the house's."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

from vision.errors import InputError


class Parser(argparse.ArgumentParser):
    """Raises :class:`~vision.errors.InputError` where argparse would print its usage and leave."""

    def error(self, message: str) -> NoReturn:
        """One line for what is wrong with the arguments."""
        raise InputError(f"{self.prog.removeprefix('vision ')}: {message}")


def leave_with(main: Callable[[], int]) -> NoReturn:
    """Runs a program beside the ``vision`` command, and leaves as that does: 2 and one line for a user's error."""
    try:
        sys.exit(main())
    except InputError as error:
        print(f"vision: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
