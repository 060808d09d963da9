"""Output formats for matches, chosen by the file's suffix; plugins register more of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from matchrt.errors import UsageError

if TYPE_CHECKING:
    from matchrt.matches import Matches


@dataclass(frozen=True, kw_only=True)
class Writer:
    """One output format. `suffixes` are lower-case with their dot.

    `write` is "module:function", imported at first use; the function is called with (path, matches) and writes a single pair,
    whole or not at all.
    """

    name: str
    suffixes: tuple[str, ...]
    description: str
    write: str

    def __call__(self, path: Path, matches: Matches) -> None:
        """Write `matches` to `path`."""
        import importlib

        module, _, function = self.write.partition(":")
        getattr(importlib.import_module(module), function)(path, matches)


def find_writer(path: str | os.PathLike[str], writers: Mapping[str, Writer] | None = None) -> Writer:
    """The format for the suffix of `path`; `writers` maps suffixes to formats (None: all registered ones).

    Raises `UsageError` for a suffix without a format, naming those that have one.
    """
    if writers is None:
        from matchrt.plugins import get_plugins

        writers = get_plugins().writers
    suffix = Path(path).suffix.lower()
    if suffix not in writers:
        names = ", ".join(f"{s} ({w.description})" for s, w in writers.items())
        problem = f"no format has the suffix {suffix!r}" if suffix else "it has no suffix to choose the format by"
        raise UsageError(f"cannot save matches to {path}: {problem}", hint=f"known suffixes: {names}")
    return writers[suffix]


def write_matches(
    path: str | os.PathLike[str], matches: Matches, *, writers: Mapping[str, Writer] | None = None
) -> None:
    """Write `matches` in the format of the path's suffix. Raises as `find_writer`, and whatever the format raises."""
    find_writer(path, writers)(Path(path), matches)


_FORMATS = "matchrt.files.formats:"
BUILT_IN: tuple[Writer, ...] = (
    Writer(name="npz", suffixes=(".npz",), description="NumPy arrays and metadata", write=_FORMATS + "write_npz"),
    Writer(name="json", suffixes=(".json",), description="JSON", write=_FORMATS + "write_json"),
    Writer(
        name="hloc",
        suffixes=(".h5", ".hdf5"),
        description="hloc HDF5, features and matches; needs h5py",
        write=_FORMATS + "write_hloc",
    ),
    Writer(
        name="colmap",
        suffixes=(".txt",),
        description="COLMAP match list, keypoints beside it in NAME.features",
        write=_FORMATS + "write_colmap",
    ),
)
"""The formats that come with matchrt, in the order in which they are listed."""
