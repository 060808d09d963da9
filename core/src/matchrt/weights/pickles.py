"""Name what a pickle would call, by reading its instructions and running none of them. No torch."""

from __future__ import annotations

import io
import pickletools
import zipfile
from pathlib import Path

_MAX_BYTES = 64_000_000
_HARMLESS = ("torch", "collections.OrderedDict", "numpy", "_codecs.encode")


def suspicious_globals(path: Path) -> list[str]:
    """Return the dotted names that the pickle in `path` refers to and plain tensors do not need, in file order."""
    names = [name for stream in _streams(path) for name in _globals(stream)]
    return [name for name in dict.fromkeys(names) if not _is_harmless(name)]


def _is_harmless(name: str) -> bool:
    return any(name == known or name.startswith(known + ".") for known in _HARMLESS)


def _streams(path: Path) -> list[io.BytesIO]:
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                members = [m for m in archive.infolist() if m.filename.endswith("data.pkl")]
                return [io.BytesIO(archive.open(member).read(_MAX_BYTES)) for member in members]
        with path.open("rb") as file:
            return [io.BytesIO(file.read(_MAX_BYTES))]
    except Exception:  # damaged in one of the many ways that zipfile reports differently: nothing can be named
        return []


def _globals(stream: io.BytesIO) -> list[str]:
    names: list[str] = []
    try:
        while stream.tell() < len(stream.getbuffer()):
            _scan(stream, names)
    except Exception:  # a damaged pickle, or the storage bytes after it: what was found so far is the answer
        return names
    return names


def _scan(stream: io.BytesIO, names: list[str]) -> None:
    """Append the globals of one pickle to `names`; protocol 4 takes a global's two names from the strings before it."""
    strings: list[str] = []
    memo: dict[int, str] = {}
    last = ""
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name in ("GLOBAL", "INST"):
            names.append(str(argument).replace(" ", "."))
        elif opcode.name == "STACK_GLOBAL" and len(strings) >= 2:
            names.append(".".join(strings[-2:]))
        elif opcode.name in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
            memo[len(memo) if argument is None else int(argument)] = last
        elif opcode.name in ("GET", "BINGET", "LONG_BINGET"):
            last = memo.get(int(argument or 0), "")
            strings.append(last)
        last = argument if isinstance(argument, str) else last if "GET" in opcode.name else ""
        if isinstance(argument, str) and opcode.name not in ("GLOBAL", "INST"):
            strings.append(argument)
