"""Whom a file must belong to before it may be deserialised: an engine is executable code, and so is a forged one.

Trusted is what this user's cache wrote: a regular file (no link) of this user, in a folder of this user, neither writable by
anybody else. The one exception is a file whose sha256 the user names (`--trust SHA256`).
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from matchrt.errors import BackendError, UsageError

_SHA256 = re.compile(r"[0-9a-f]{64}")


class UntrustedEngineError(BackendError):
    """The file may be another user's work; it was not deserialised."""


class CorruptEngineError(BackendError):
    """The file is not what was written; it was not deserialised."""


@dataclass(frozen=True)
class Content:
    """A file's bytes with the sha256 of exactly these bytes, and why it is not trusted ("" if it is)."""

    data: bytes
    sha256: str
    distrust: str


def parse_digests(texts: Collection[str]) -> frozenset[str]:
    """The digests given with `--trust`. Raises `UsageError` for what is no sha256."""
    digests = frozenset(t.strip().lower() for t in texts)
    for digest in digests:
        if not _SHA256.fullmatch(digest):
            raise UsageError(f"--trust takes a sha256 of 64 hexadecimal digits, got {digest!r}")
    return digests


def read_content(path: Path, limit: int | None = None) -> Content:
    """Read `path` once: owner, mode and bytes come from the same open file, so nothing can be exchanged in between.

    Raises `UntrustedEngineError` for a link or a special file, `FileNotFoundError`, and `CorruptEngineError` beyond `limit` bytes.
    """
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    if path.is_symlink():
        raise UntrustedEngineError(f"{path} is a symbolic link, not an engine that this cache wrote")
    try:
        handle = os.open(path, flags)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UntrustedEngineError(f"{path} cannot be opened as a plain file: {error.strerror}") from None
    with os.fdopen(handle, "rb") as file:
        info = os.fstat(file.fileno())
        if not stat.S_ISREG(info.st_mode):
            raise UntrustedEngineError(f"{path} is not a regular file")
        if limit is not None and info.st_size > limit:
            raise CorruptEngineError(f"{path} has {info.st_size} bytes, more than it may have ({limit})")
        data = file.read()
    return Content(data, hashlib.sha256(data).hexdigest(), distrust(info, path) or folder_distrust(path.parent))


def folder_distrust(folder: Path) -> str:
    """Why others may have put files into `folder`; "" if they cannot."""
    return distrust(folder.stat(), folder)


def distrust(info: os.stat_result, path: Path) -> str:
    """Why somebody else may have written `path`; "" if nobody else can. Windows has no such owners and modes to ask for."""
    if os.name == "nt":
        return ""
    if info.st_uid != os.getuid():
        return f"{path} belongs to user {info.st_uid}, not to you ({os.getuid()})"
    if info.st_mode & 0o022:
        return f"{path} is writable by other users (mode {stat.S_IMODE(info.st_mode):o})"
    return ""
