"""Named arrays as files of a folder, which every process maps, or in memory."""

import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from component.ground.reading import read_file
from component.ground.retries import with_retries
from component.pairs.json_text import parse_json

RECORD = "arrays.json"  # in the folder: dtypes and lengths of the arrays, and the facts


class FlatArrays:
    """Named one-dimensional arrays, and facts that JSON can hold.

    Mapped from a folder, they are read-only and take no memory of the process, and are pickled as the path, so that
    spawned workers map the files too.

    Args:
        path: of the folder that they are mapped from; None: they are in memory.
        version: a digest of the folder's record.
    """

    def __init__(
        self,
        arrays: Mapping[str, np.ndarray],
        facts: dict[str, Any],
        path: str | None = None,
        version: str | None = None,
    ):
        self._arrays, self.facts, self.path, self.version = arrays, facts, path, version

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def __reduce__(self):
        if self.path is None:
            return FlatArrays, (self._arrays, self.facts)
        return FlatArrays.open, (self.path, self.version)

    @classmethod
    def open(cls, path: str, version: str | None = None) -> "FlatArrays":
        """Map the arrays of a folder.

        Raises:
            FileNotFoundError: there is no such folder.
            ValueError: it is damaged, or is not the version that is asked for.
        """
        content = read_file(os.path.join(path, RECORD))
        found = hashlib.blake2b(content, digest_size=16).hexdigest()
        if version not in (None, found):
            raise ValueError(f"{path} was replaced while it was in use. Start again.")
        try:
            record = parse_json(content)
            facts, arrays = dict(record["facts"]), {}
            for name, (dtype, length) in record["arrays"].items():
                arrays[name] = _map(_file(path, name), np.dtype(dtype), length)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged: {error}") from None
        return cls(arrays, facts, path, found)

    def require_whole(self) -> None:
        """Raise OSError if a file was cut since it was mapped: reading past its end kills the process (SIGBUS)."""
        for name, array in self._arrays.items() if self.path else ():
            file = _file(self.path, name)
            if os.path.exists(file) and os.path.getsize(file) < array.nbytes:  # a removed file stays readable
                raise OSError(f"{file} was cut while it was in use. Start again: it will be rebuilt.")


class ArrayWriter:
    """Appends pieces to named arrays: files of a new folder, or with None arrays in memory.

    Attributes:
        fault: the OSError of the write that failed.
    """

    def __init__(self, folder: str | None = None):
        self._folder, self._files, self._dtypes = folder, {}, {}
        self.fault: OSError | None = None

    def append(self, name: str, piece: np.ndarray) -> None:
        """Add to the end of an array, which may be new. Raises OSError if a file cannot be written."""
        with self._noting_fault():
            if name not in self._files:
                self._files[name] = open(_file(self._folder, name), "wb") if self._folder else io.BytesIO()
                self._dtypes[name] = piece.dtype
            self._files[name].write(np.ascontiguousarray(piece, self._dtypes[name]).data)

    def finish(self, facts: dict[str, Any]) -> FlatArrays | None:
        """Write the record. Returns the arrays if they are in memory. Raises OSError as `append`."""
        lengths = {name: file.tell() // self._dtypes[name].itemsize for name, file in self._files.items()}
        if self._folder is None:
            return FlatArrays(
                {
                    name: np.frombuffer(file.getbuffer(), self._dtypes[name], lengths[name])
                    if lengths[name]
                    else np.empty(0, self._dtypes[name])
                    for name, file in self._files.items()
                },
                facts,
            )
        described = {name: (dtype.str, lengths[name]) for name, dtype in self._dtypes.items()}
        with self._noting_fault():
            for file in self._files.values():
                file.close()
            with open(os.path.join(self._folder, RECORD), "w", encoding="ascii") as file:
                json.dump({"arrays": described, "facts": facts}, file)

    @contextmanager
    def _noting_fault(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.fault = error
            raise


def _file(folder: str, name: str) -> str:
    return os.path.join(folder, f"{name}.bin")


def _map(path: str, dtype: np.dtype, length: int) -> np.ndarray:
    size, wanted = os.path.getsize(path), length * dtype.itemsize
    if size != wanted:
        raise ValueError(f"{os.path.basename(path)} has {size} bytes instead of {wanted}")
    return np.asarray(with_retries(lambda: np.memmap(path, dtype, "r"))) if length else np.empty(0, dtype)
