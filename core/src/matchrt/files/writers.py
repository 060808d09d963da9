"""Output formats by suffix. A format is a `Writer`; plugins register more of them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from matchrt.errors import UsageError

if TYPE_CHECKING:
    from matchrt.matches import Matches


@dataclass(frozen=True, kw_only=True)
class Writer:
    """A format. `write` is "module:function", imported at first use and called with (path, Matches)."""

    name: str
    suffixes: tuple[str, ...]
    write: str
    description: str

    def __call__(self, path: Path, matches: Matches) -> None:
        """Write `matches` to `path`."""
        import importlib

        module, _, function = self.write.partition(":")
        getattr(importlib.import_module(module), function)(path, matches)


BUILT_IN = (
    Writer(
        name="npz",
        suffixes=(".npz",),
        write="matchrt.files.matches:write_npz",
        description="numpy arrays keypoints0, keypoints1, scores, and the metadata as JSON text",
    ),
    Writer(
        name="json",
        suffixes=(".json",),
        write="matchrt.files.matches:write_json",
        description="the same as JSON",
    ),
    Writer(
        name="hloc",
        suffixes=(".h5", ".hdf5"),
        write="matchrt.files.matches:write_hloc",
        description="hloc's features and matches in one HDF5 file (needs h5py)",
    ),
    Writer(
        name="colmap",
        suffixes=(".txt",),
        write="matchrt.files.matches:write_colmap_text",
        description="COLMAP's raw match list: a line with both names, then index pairs",
    ),
)


def find_writer(path: str | os.PathLike[str]) -> Writer:
    """The writer for the suffix of `path`. Raises `UsageError` naming the known suffixes."""
    from matchrt.plugins import get_plugins

    writers = get_plugins().writers
    suffix = Path(path).suffix.lower()
    if suffix not in writers:
        raise UsageError(f"cannot save to {path}: unknown suffix {suffix!r}", hint=f"known: {', '.join(writers)}")
    return writers[suffix]


def write_matches(path: str | os.PathLike[str], matches: Matches) -> None:
    """Write `matches` in the format of the suffix of `path`. Raises `UsageError`, `OSError`."""
    find_writer(path)(Path(path), matches)
