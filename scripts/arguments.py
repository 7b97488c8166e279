"""An argument parser whose errors are the house's."""

from __future__ import annotations

import argparse
from typing import NoReturn

from vision.errors import InputError


class Parser(argparse.ArgumentParser):
    """Raises :class:`~vision.errors.InputError` where argparse would print its usage and leave."""

    def error(self, message: str) -> NoReturn:
        """One line for what is wrong with the arguments."""
        raise InputError(f"{self.prog.removeprefix('vision ')}: {message}")
