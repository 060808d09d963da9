"""What kind of file this is, by its first bytes and never by its suffix. No torch.

`identify` returns one of `KINDS`, or raises `WeightsError` with what the file is instead.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Literal

from matchrt.errors import WeightsError

Kind = Literal["safetensors", "torch-zip", "torch-legacy"]
KINDS: tuple[Kind, ...] = ("safetensors", "torch-zip", "torch-legacy")
"""safetensors; torch's zip format (since 1.6); torch's older chain of pickles."""

_OTHER_FORMATS = (
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy array file"),
    (b"GGUF", "a GGUF file"),
    (b"\x1f\x8b", "gzip-compressed: unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive: unpack it first"),
    (b"Rar!", "a RAR archive: unpack it first"),
    (b"BZh", "bzip2-compressed: unpack it first"),
    (b"\xfd7zXZ", "xz-compressed: unpack it first"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"%PDF", "a PDF document"),
    (b"\x7fELF", "a program or shared library"),
)
_ONNX_FIELDS = frozenset({0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42})
_SUPPORTED = "Give a safetensors file or a PyTorch checkpoint."


def identify(path: Path) -> Kind:
    """Return the container of `path` by content; raise `WeightsError` for anything else, missing files included."""
    size = _size(path)
    with path.open("rb") as file:
        start = file.read(1024)
    if size == 0:
        raise WeightsError(f"{path} is empty (0 bytes)", hint="Download or copy the file again.")
    if start.startswith(b"version https://git-lfs"):
        raise WeightsError(
            f"{path} is a git-LFS pointer of {size} bytes, not the weights themselves",
            hint="Fetch the content with `git lfs pull`, or download the file from its web page.",
        )
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _identify_zip(path, size)
    if len(start) > 8 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") >= 2:
        return "safetensors"
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "torch-legacy"
    raise _not_a_checkpoint(path, size, start)


def _size(path: Path) -> int:
    try:
        if path.is_dir():
            raise WeightsError(f"{path} is a folder, not a weights file", hint="Name the file in it.")
        return path.stat().st_size
    except FileNotFoundError as error:
        raise WeightsError(
            f"{path} does not exist", hint="Check the path, or fetch published weights with `matchrt fetch`."
        ) from error
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from error


def _not_a_checkpoint(path: Path, size: int, start: bytes) -> WeightsError:
    for magic, what in _OTHER_FORMATS:
        if start.startswith(magic):
            return WeightsError(f"{path} is {what}", hint=_SUPPORTED)
    if start[257:262] == b"ustar":
        return WeightsError(f"{path} is a tar archive: unpack it first", hint=_SUPPORTED)
    if len(start) > 3 and start[0] == 0x08 and 1 <= start[1] <= 30 and start[2] in _ONNX_FIELDS:
        return WeightsError(
            f"{path} is an ONNX model, not a checkpoint",
            hint="Conversion starts from the PyTorch weights; a bundle made by matchrt is run with `matchrt match`.",
        )
    text = _as_text(start)
    if text is not None and text.lstrip().lower().startswith(("<!doctype", "<html", "<?xml", "<head")):
        return WeightsError(
            f"{path} is a saved web page of {size} bytes, not a weights file",
            hint="The download link led to a page (a log-in or a preview): download the file itself.",
        )
    if text is not None:
        line = text.strip().splitlines()[0][:60] if text.strip() else ""
        return WeightsError(f"{path} is a text file of {size} bytes, which begins {line!r}", hint=_SUPPORTED)
    return WeightsError(
        f"{path} is no known weights format ({size} bytes, first bytes {start[:8].hex(' ')})", hint=_SUPPORTED
    )


def _as_text(start: bytes) -> str | None:
    for end in range(len(start), max(len(start) - 4, 0), -1):
        try:
            text = start[:end].decode("utf-8")
        except UnicodeDecodeError:
            continue
        return text if all(c.isprintable() or c in "\r\n\t\f\ufeff" for c in text) else None
    return None


def _identify_zip(path: Path, size: int) -> Kind:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            _check_zip(path, size, members)
            _check_sums(path, archive)
    except (WeightsError, MemoryError):
        raise
    except Exception as error:  # zipfile reports damage as BadZipFile, EOFError, NotImplementedError, struct.error, …
        raise WeightsError(
            f"{path} is truncated or damaged: the zip directory at its end cannot be read (the file has {size} bytes)",
            hint="Download or copy the file again.",
        ) from error
    return "torch-zip"


def _check_zip(path: Path, size: int, members: list[zipfile.ZipInfo]) -> None:
    declared = sum(member.file_size for member in members)
    if declared > 4 * size + 1_000_000:
        raise WeightsError(f"{path} is refused: its {len(members)} parts declare {declared} bytes, the file has {size}")
    names = [member.filename for member in members]
    if any(name.endswith("constants.pkl") for name in names):
        raise WeightsError(
            f"{path} is a TorchScript program, not a checkpoint",
            hint="Save its `state_dict()` with torch.save or safetensors, and give that file.",
        )
    if not any(name.endswith("data.pkl") for name in names):
        shown = ", ".join(names[:3]) or "nothing"
        raise WeightsError(f"{path} is a zip archive without a PyTorch checkpoint (it holds {shown})", hint=_SUPPORTED)


def _check_sums(path: Path, archive: zipfile.ZipFile) -> None:
    """Compare every part with its CRC-32, which torch leaves out when it maps the file: a flipped bit is an error."""
    damaged: str | None
    try:
        damaged = archive.testzip()
    except Exception as error:
        damaged = f"one ({error})"
    if damaged is not None:
        raise WeightsError(
            f"{path} is damaged: its part {damaged} does not have the checksum that was stored with it",
            hint="Download or copy the file again.",
        )
