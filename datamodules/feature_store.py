"""Features on disk: one array, a byte for each of its rows that says what is done, and an index of what made them."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vision.errors import InputError

TO_DO, DONE, UNREADABLE = 0, 1, 2
DTYPES = ("float16", "float32")
REMEDY = "take another folder (data.cache), or remove this one to make the features anew"


class Entry(NamedTuple):
    """A file, or a part of one, as an index keeps it.

    Attributes:
        path: relative to the data's folder, which may be moved.
        size: bytes; None where there is no such file.
        modified: nanoseconds since 1970; None where there is no such file.
        part: of the file, in words; empty for the whole of it.
    """

    path: str
    size: int | None
    modified: int | None
    part: str

    @classmethod
    def of(cls, path: str, root: str | Path, part: str = "") -> Entry:
        """The entry of a file as it is now."""
        return cls(os.path.relpath(path, root), *_stamp(path), part)

    @property
    def stamp(self) -> tuple[int | None, int | None]:
        """Size and time."""
        return self.size, self.modified

    def __str__(self) -> str:
        return f"{self.path} ({self.part})" if self.part else self.path

    def state(self) -> str:
        """Size and time, for a message."""
        if self.size is None or self.modified is None:
            return "not there"
        return f"{self.size:,} bytes of {datetime.fromtimestamp(self.modified / 1e9, UTC):%Y-%m-%d %H:%M:%S}"


def _stamp(path: str) -> tuple[int | None, int | None]:
    try:
        found = os.stat(path)  # noqa: PTH116 (a Path for each of a million files is too slow)
    except OSError:
        return None, None
    return found.st_size, found.st_mtime_ns


def read_index(folder: Path) -> dict[str, Any] | None:
    """What the index of a folder says; None where it has none.

    Raises:
        InputError: the file is not an index.
    """
    file = folder / "index.json"
    try:
        index = json.loads(file.read_text(encoding="utf-8"))
        if {"key", "fields", "shape", "files"} <= index.keys():
            return dict(index)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{file}: not the index of a feature cache ({error})") from error
    raise InputError(f"{file}: not the index of a feature cache")


class FeatureStore:
    """Rows of features of one shape, each of which is written once; several processes may write rows of their own.

    Files: ``features.bin``, the rows one after the other; ``done.bin``, a byte a row (0 to do, 1 done, 2 the file
    cannot be read); ``unreadable-PROCESS.csv`` with the reasons, and with size and time of the files then;
    ``index.json``.

    Args:
        folder: of an existing store.
        shape: of a row.
        dtype: of the array, ``float16`` or ``float32`` where a task's network made it.
        rows: how many there are.

    Raises:
        InputError: the files do not have the size that goes with this.
    """

    def __init__(self, folder: Path, shape: Sequence[int], dtype: str, rows: int) -> None:
        self.folder, self.shape, self.dtype, self.rows = folder, tuple(shape), np.dtype(dtype), rows
        self.row_bytes = int(np.prod(self.shape)) * self.dtype.itemsize
        for name, size in (("features.bin", rows * self.row_bytes), ("done.bin", rows)):
            file = folder / name
            found = file.stat().st_size if file.is_file() else 0
            if found != size:
                raise InputError(f"{file}: {found:,} bytes, expected {size:,}; {REMEDY}")
        self.refresh()

    @classmethod
    def open(cls, folder: Path, fields: Mapping[str, Any], files: Sequence[Entry], rows: int) -> FeatureStore | None:
        """The store in a folder; None where there is none yet.

        Args:
            folder: may be missing.
            fields: what the features depend on, plain JSON values by name; ``task.dtype`` is that of the array.
            files: what the features are of. One that is gone since is let through, and a changed one of which there
                are no features yet (:meth:`try_again`).
            rows: how many there should be.

        Raises:
            InputError: the features were made with other fields or of other files; the first that differs is named.
        """
        index = read_index(folder)
        if index is None:
            return None
        if index["key"] != key_of(fields):
            raise InputError(f"{folder}: {_difference(index['fields'], fields)}; {REMEDY}")
        before = [Entry(*entry) for entry in index["files"]]
        _compare(folder, before, files)
        store = cls(folder, index["shape"], fields["task"]["dtype"], rows)
        for old, new, made in zip(before, files, store.made(len(files)), strict=True):
            # What is gone cannot have changed: features may outlive their files.
            if made and new.size is not None and old.stamp != new.stamp:
                raise InputError(
                    f"{folder}: {new.path} has changed since its features were made ({old.state()}, now "
                    f"{new.state()}); {REMEDY}"
                )
        return store

    @classmethod
    def create(
        cls,
        folder: Path,
        fields: Mapping[str, Any],
        files: Sequence[Entry],
        shape: Sequence[int],
        rows: int,
    ) -> None:
        """Writes an empty store.

        Args:
            folder: is made where it is missing.
            fields: as in :meth:`open`.
            files: as in :meth:`open`.
            shape: of a row.
            rows: how many there will be.

        Raises:
            InputError: the folder cannot be written.
        """
        size = rows * int(np.prod(shape)) * np.dtype(fields["task"]["dtype"]).itemsize
        index = {"key": key_of(fields), "fields": fields, "shape": list(shape), "files": files}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, length in (("features.bin", size), ("done.bin", rows)):
                # Nothing is cut off first: another run may have begun with the same cache a moment ago.
                with (folder / name).open("ab") as stream:
                    stream.truncate(length)
            (folder / "done.bin").write_bytes(bytes(rows))
            _write(folder / "index.json", json.dumps(index))  # last, and at once: it means that the rest is there
        except OSError as error:
            raise InputError(f"data.cache: {folder} cannot be written ({error.strerror})") from error

    def refresh(self) -> None:
        """Reads again what is done, by this process or another."""
        self.status: NDArray[np.uint8] = np.fromfile(self.folder / "done.bin", np.uint8)
        self.array: NDArray[Any] = np.memmap(
            self.folder / "features.bin", self.dtype, mode="r", shape=(self.rows, *self.shape)
        )
        self.reasons: dict[int, str] = {}
        self._stamps: dict[int, list[str]] = {}
        for rows in self._unreadable().values():
            for row, _, reason, *stamp in rows:
                self.reasons[int(row)], self._stamps[int(row)] = reason, stamp

    def _unreadable(self) -> dict[Path, list[list[str]]]:
        """The tables of what could not be read, as they are."""
        tables = {}
        for file in sorted(self.folder.glob("unreadable-*.csv")):
            with file.open(newline="", encoding="utf-8") as stream:
                tables[file] = list(csv.reader(stream))
        return tables

    def made(self, files: int) -> NDArray[np.bool_]:
        """Whether there are features of each of so many files."""
        found: NDArray[np.bool_] = (self.status.reshape(files, -1) == DONE).any(axis=1)
        return found

    def try_again(self, files: Sequence[Entry]) -> None:
        """Takes up again what could not be read and is there again, or has changed; for one process alone.

        Args:
            files: as in :meth:`open`. The index is brought up to date with those of which there are no features yet.

        Raises:
            InputError: the folder cannot be written.
        """
        if (self.status == DONE).all() or (index := read_index(self.folder)) is None:
            return
        draws = self.rows // len(files)
        again = set[int]()
        for row in np.flatnonzero(self.status == UNREADABLE).tolist():
            file = files[row // draws]
            if file.size is not None and self._stamps.get(row) != [str(file.size), str(file.modified)]:
                again.add(row)
        entries = [
            new if new.size is not None and not made else Entry(*old)
            for old, new, made in zip(index["files"], files, self.made(len(files)), strict=True)
        ]
        try:
            if entries != [Entry(*old) for old in index["files"]]:
                # Before the rows: where this is interrupted, they are found by their own tables the next time.
                _write(self.folder / "index.json", json.dumps({**index, "files": entries}))
            self._mark(sorted(again), TO_DO)
            for table, rows in self._unreadable().items() if again else ():
                left = io.StringIO(newline="")
                csv.writer(left).writerows(row for row in rows if int(row[0]) not in again)
                _write(table, left.getvalue())
        except OSError as error:
            raise InputError(f"data.cache: {self.folder} cannot be written ({error.strerror})") from error

    def to_do(self) -> NDArray[np.intp]:
        """The rows that are neither done nor unreadable."""
        return np.flatnonzero(self.status == TO_DO)

    def read(self, row: int) -> NDArray[np.float32]:
        """A row, an array of its own."""
        return np.array(self.array[row], np.float32)

    def write(self, rows: Sequence[int], features: NDArray[Any]) -> None:
        """Keeps finished rows ``(n, *shape)``.

        Raises:
            InputError: the disk is full.
        """
        data = np.ascontiguousarray(features, self.dtype)
        try:
            # Not through the mapping, where a full disk ends the process by a signal.
            with (self.folder / "features.bin").open("r+b") as stream:
                for row, values in zip(rows, data, strict=True):
                    stream.seek(row * self.row_bytes)
                    stream.write(values.tobytes())
                stream.flush()
                os.fsync(stream.fileno())  # before the rows count as done
            self._mark(rows, DONE)
        except OSError as error:
            raise InputError(f"data.cache: {self.folder} cannot be written ({error.strerror})") from error

    def leave_out(self, row: int, path: str, reason: str, process: int) -> None:
        """Notes that the file of a row cannot be read, as it is now."""
        with (self.folder / f"unreadable-{process}.csv").open("a", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerow((row, path, reason, *_stamp(path)))
        self._mark([row], UNREADABLE)

    def _mark(self, rows: Sequence[int], status: int) -> None:
        with (self.folder / "done.bin").open("r+b") as stream:
            for row in rows:
                stream.seek(row)
                stream.write(bytes([status]))


def _write(file: Path, text: str) -> None:
    """Replaces a file at once."""
    temporary = file.with_name(f".{file.name}-{os.getpid()}")
    temporary.write_text(text, encoding="utf-8", newline="")
    temporary.replace(file)


def check_room(folder: Path, size: int) -> None:
    """That ``size`` bytes fit on the disk of a folder, which need not exist.

    Raises:
        InputError: they do not.
    """
    existing = next(parent for parent in [folder.absolute(), *folder.absolute().parents] if parent.exists())
    free = shutil.disk_usage(existing).free
    if size > free:
        raise InputError(f"data.cache: the features take {readable(size)}, {folder} has room for {readable(free)}")


def readable(size: int) -> str:
    """Bytes as a person says them."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} bytes"


def key_of(fields: Mapping[str, Any]) -> str:
    """A hash of fields."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _flat(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    # Through JSON, as the index has gone: tuples become lists.
    old, new = dict(_flat(before)), dict(_flat(json.loads(json.dumps(now))))
    for name in {**new, **old}:
        if old.get(name) != new.get(name):
            return f"the features were made with {name} {old.get(name)}, now it is {new.get(name)}"
    return "the key of the index does not go with its fields"


def _compare(folder: Path, before: Sequence[Entry], now: Sequence[Entry]) -> None:
    if len(before) != len(now):
        raise InputError(f"{folder}: the features are of {len(before)} files, {len(now)} are listed now; {REMEDY}")
    for number, (old, new) in enumerate(zip(before, now, strict=True), 1):
        if (old.path, old.part) != (new.path, new.part):
            raise InputError(f"{folder}: file {number} of the features is {old}, now {new} is listed there; {REMEDY}")
