"""LMDBs of words in pictures, as DTRB, PARSeq, OpenOCR and Union14M have them.

A folder with ``data.mdb``; the keys are ``num-samples``, ``image-000000001`` (an encoded picture) and
``label-000000001`` (UTF-8), numbered from 1; others are ignored.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import lmdb
import numpy as np
from numpy.typing import NDArray

from datamodules.decoding import UnreadableImageError, decode_image
from datamodules.text_words import Numbered, Sieve
from vision.errors import InputError

FILE = "data.mdb"
MOST = 2**31 - 1  # the largest number of a picture
_A_COMMIT = 1000
_MAP = 2**40  # bytes of addresses, not of disk
# A process may open a folder once. Forked workers go on with the handle that they were born with: it is read-only and
# has no lock, so nothing is shared that could change. It is no attribute of anything, so it is never pickled.
_opened: dict[str, lmdb.Environment] = {}


def open_lmdb(folder: str | Path) -> lmdb.Environment:
    """A folder for reading; a second request in a process gets the same handle.

    Raises:
        InputError: it is no LMDB, or a part of the file is missing.
    """
    place = str(Path(folder).resolve())
    if place in _opened:
        return _opened[place]
    file = Path(folder, FILE)
    try:
        size = file.stat().st_size
        if not size:
            raise InputError(f"{file}: empty file (0 bytes), expected an LMDB")
        environment = lmdb.open(place, readonly=True, lock=False, readahead=False, meminit=False)
    except (OSError, lmdb.Error) as error:
        raise InputError(f"{file}: cannot be opened as an LMDB ({_reason(error)})") from error
    # Reading beyond the end of the file would kill the process.
    needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    if size < needed:
        environment.close()
        raise InputError(f"{file}: truncated, it has {size:,} of {needed:,} bytes")
    _opened[place] = environment
    return environment


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()).rpartition(": ")[2] or type(error).__name__


class LmdbWords:
    """The pictures of an LMDB whose labels a network can learn; see :class:`~datamodules.text_words.Source`.

    What is dropped is counted as ``missing label``, ``missing image``, ``label is no UTF-8``, ``beyond num-samples``,
    or as :func:`vision.text.clean_label` says.

    Args:
        folder: has a ``data.mdb``.
        charset: the characters.
        longest: characters of a label at most.

    Raises:
        InputError: it is no LMDB, is damaged, or has no (or a senseless) ``num-samples``.
    """

    def __init__(self, folder: str | Path, charset: str, longest: int) -> None:
        self.name = str(folder)
        sieve = Sieve(charset, longest)
        environment = open_lmdb(folder)
        try:
            with environment.begin(buffers=True) as transaction:
                _scan(transaction, Path(folder, FILE), sieve)
        except lmdb.Error as error:
            raise InputError(f"{Path(folder, FILE)}: damaged ({_reason(error)})") from error
        self.labels: Sequence[str] = sieve.labels
        self.numbers: array[int] = sieve.numbers
        self.dropped: Counter[str] = sieve.dropped
        self.paths: Sequence[str] = Numbered(self.name, self.numbers)

    def encoded(self, index: int) -> bytes:
        """The bytes of a picture as they are stored.

        Raises:
            UnreadableImageError: they cannot be had.
        """
        try:
            with open_lmdb(self.name).begin() as transaction:
                data = transaction.get(b"image-%09d" % self.numbers[index])
        except lmdb.Error as error:
            raise UnreadableImageError(self.paths[index], f"the LMDB is damaged here ({_reason(error)})") from error
        return bytes(data or b"")

    def pixels(self, index: int, max_pixels: int) -> NDArray[np.uint8]:
        """See :class:`~datamodules.text_words.Source`."""
        return decode_image(self.encoded(index), self.paths[index], max_pixels)


def _scan(transaction: lmdb.Transaction, file: Path, sieve: Sieve) -> None:
    said = transaction.get(b"num-samples")
    if said is None:
        raise InputError(f"{file}: no key num-samples; expected an LMDB of words (num-samples, image-*, label-*)")
    text = bytes(said).decode(errors="replace").strip()
    if not (text.isascii() and text.isdecimal()) or int(text) > MOST:
        raise InputError(f"{file}: num-samples is '{text[:40]}', expected a number up to {MOST:,}")
    total = int(text)
    # By a cursor and not by number: num-samples may promise any number of labels that are not there.
    pictures = (number for number, _ in _numbered(transaction, b"image-", False))
    picture = next(pictures, MOST)
    found = 0
    for number, raw in _numbered(transaction, b"label-", True):
        if number > total:
            sieve.dropped["beyond num-samples"] += 1
            continue
        found += 1
        while picture < number:
            picture = next(pictures, MOST)
        if picture != number:
            sieve.dropped["missing image"] += 1
            continue
        try:
            label = bytes(raw).decode()
        except UnicodeDecodeError:
            sieve.dropped["label is no UTF-8"] += 1
            continue
        sieve.offer(number, label)
    if found < total:
        sieve.dropped["missing label"] += total - found


def _numbered(transaction: lmdb.Transaction, prefix: bytes, values: bool) -> Iterator[tuple[int, bytes | memoryview]]:
    """The numbers behind a prefix in ascending order, with what is stored there if that is asked for."""
    cursor = transaction.cursor()
    if not cursor.set_range(prefix):
        return
    nothing = b""
    entries = cursor.iternext() if values else ((key, nothing) for key in cursor.iternext(values=False))
    for key, value in entries:
        name = bytes(key)
        if not name.startswith(prefix):
            return
        digits = name[len(prefix) :]
        if len(digits) == 9 and digits.isdigit() and int(digits):
            yield int(digits), value


def write_lmdb(folder: Path, words: Iterable[tuple[bytes, str]]) -> int:
    """Writes encoded pictures and their labels in this format; returns how many.

    ``num-samples`` is written last, so that a folder that was left half written is refused when it is read.

    Raises:
        InputError: the folder has an LMDB already or cannot be written, or there are no words; nothing is left there
            then.
    """
    if (folder / FILE).exists():
        raise InputError(f"{folder / FILE} exists already; name another folder or delete it")
    number, written = 0, False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with lmdb.open(str(folder), map_size=_MAP) as environment:
            transaction = environment.begin(write=True)
            for number, (picture, label) in enumerate(words, 1):
                transaction.put(b"image-%09d" % number, picture)
                transaction.put(b"label-%09d" % number, label.encode())
                if number % _A_COMMIT == 0:
                    transaction.commit()
                    transaction = environment.begin(write=True)
            if not number:
                raise InputError(f"{folder}: there are no words to write")
            transaction.put(b"num-samples", b"%d" % number)
            transaction.commit()
        written = True
    except (OSError, lmdb.Error) as error:
        raise InputError(f"{folder / FILE}: cannot be written ({_reason(error)})") from error
    finally:
        if not written:
            with suppress(OSError):
                for name in (FILE, "lock.mdb"):
                    (folder / name).unlink(missing_ok=True)
    return number
