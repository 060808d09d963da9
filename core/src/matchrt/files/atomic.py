"""Files and folders that appear complete or not at all.

Everything is built under a hidden temporary name in the same folder, synced to the disk and renamed. On any failure,
Ctrl-C included, the temporary is removed and what was there before stays.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from matchrt.errors import MatchrtError, UsageError

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
StrPath = str | os.PathLike[str]


def atomic_write_bytes(path: StrPath, data: bytes) -> None:
    """Write `data` to `path`. Raises as `atomic_file`."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)


def atomic_write_text(path: StrPath, text: str) -> None:
    """Write `text` to `path` as UTF-8, line ends as given. Raises as `atomic_file`."""
    atomic_write_bytes(path, text.encode("utf-8"))


@contextmanager
def atomic_file(path: StrPath) -> Iterator[Path]:
    """A temporary path to write to, which becomes `path` when the block ends without an error.

    The temporary lies in the same folder and keeps the suffix. A symbolic link is followed: its target is replaced.
    Raises `UsageError` where the folder is missing or `path` is not a regular file, and `MatchrtError` where the disk is
    full or writing is refused. Any other exception of the block passes through.
    """
    target = Path(os.path.realpath(path))
    _check_parent(target, path)
    if target.exists() and not target.is_file():
        raise UsageError(f"{path} is {'a folder' if target.is_dir() else 'not a regular file'}", hint="name a file")
    temporary = _beside(target, target.suffix)
    try:
        with _told(path):
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            yield temporary
            _sync(temporary)
            temporary.replace(target)
            _sync(target.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_folder(path: StrPath, *, replace: bool = False, marker: str = "bundle.json") -> Iterator[Path]:
    """A temporary folder to fill, which becomes `path` when the block ends without an error.

    An existing empty folder is filled. An existing folder with content is replaced only with `replace=True` and only
    where it holds a file named `marker`, so that no other folder is ever deleted: then the old one is moved aside, the
    new one renamed and the old one removed. Between the two renames nothing is at `path`. Raises `UsageError` before the
    block where `path` cannot be made or replaced, and `MatchrtError` where the disk is full.
    """
    target = Path(os.path.abspath(path))
    _check_parent(target, path)
    _check_replaceable(target, path, replace, marker)
    temporary = _beside(target, ".tmp")
    try:
        with _told(path):
            temporary.mkdir()
            yield temporary
            _sync_tree(temporary)
            _check_replaceable(target, path, replace, marker)
            _swap_in(temporary, target)
            _sync(target.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _swap_in(temporary: Path, target: Path) -> None:
    if not target.exists() or not any(target.iterdir()):
        temporary.replace(target)  # POSIX renames over an empty folder
        return
    old = _beside(target, ".old")
    target.rename(old)
    try:
        temporary.rename(target)
    except BaseException:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _check_replaceable(target: Path, path: StrPath, replace: bool, marker: str) -> None:
    if not os.path.lexists(target):
        return
    if target.is_symlink() or not target.is_dir():
        kind = "a symbolic link" if target.is_symlink() else "a file"
        raise UsageError(f"{path} is {kind}, not a folder", hint="choose another name, or remove it")
    if not any(target.iterdir()):
        return
    if not replace:
        raise UsageError(f"{path} already exists", hint="choose another name, or ask for it to be replaced")
    if not (target / marker).is_file():
        raise UsageError(
            f"{path} is not replaced: it holds no {marker}, so it was not written by this tool",
            hint="choose another name, or remove the folder yourself",
        )
    if Path.cwd().is_relative_to(target):
        raise UsageError(f"{path} is not replaced: it contains the current folder", hint="change to another folder")


def _check_parent(target: Path, path: StrPath) -> None:
    if not target.parent.is_dir():
        raise UsageError(f"cannot write {path}: there is no folder {target.parent}", hint=f"mkdir -p {target.parent}")


def _beside(target: Path, suffix: str) -> Path:
    return target.with_name(f".{target.name[:80]}.{os.getpid()}-{secrets.token_hex(4)}{suffix}")


@contextmanager
def _told(path: StrPath) -> Iterator[None]:
    """Turn a full disk, and a refusal by the file system, into a clear error."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            hint = "free some space, or write to another disk"
            raise MatchrtError(f"cannot write {path}: {error.strerror}", hint=hint) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG):
            raise MatchrtError(f"cannot write {path}: {error.strerror}", hint="write to another folder") from error
        raise


def _sync_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            _sync(Path(parent, name))
        _sync(Path(parent))


def _sync(path: Path) -> None:
    """Push a file or folder to the disk; folders cannot be opened on Windows."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
