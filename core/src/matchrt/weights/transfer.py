"""One attempt at filling a part file from an address, continuing what is there. Standard library only."""

from __future__ import annotations

import errno
import http.client
import json
import os
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from email.message import Message
from hashlib import sha256
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit, urlunsplit

from matchrt.errors import DownloadError

TIMEOUT_SECONDS = 30.0
_CHUNK = 1 << 18


class CutOffError(Exception):
    """The connection ended early; what came is kept, and another attempt can continue."""


class UnreachableError(Exception):
    """The server could not be reached at all."""


@dataclass(frozen=True)
class Wanted:
    """What the content must be, as far as it is known: sha256 in lower-case hexadecimal, and size in bytes."""

    sha256: str | None
    size: int | None


@dataclass(frozen=True)
class Request:
    """An address, the part file to fill, what is wanted, and where progress is told."""

    url: str
    part: Path
    wanted: Wanted
    progress: Callable[[int, int | None], None] | None = None


def shown_url(url: str) -> str:
    """Return `url` without user, password, query and fragment, which may hold secrets."""
    split = urlsplit(url)
    return urlunsplit((split.scheme, split.netloc.rpartition("@")[2], split.path, "", ""))


def transfer(request: Request) -> bool:
    """Fill the part file to the end; return whether bytes of an earlier attempt were kept.

    Raises `CutOffError`, `UnreachableError`, `DownloadError` (a refusal that trying again would not change), or
    `OSError` from the disk.
    """
    if urlsplit(request.url).scheme == "file":
        return _copy_local(request)
    have, validator = _resumable(request)
    try:
        with _open(request.url, have, validator) as response:
            return _receive(request, response, have)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and have:
            return _range_refused(request, error, have)
        raise _http_error(request.url, error) from error


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects, but never from https to http (urllib itself refuses file addresses)."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> urllib.request.Request | None:
        """Refuse a redirect that would leave encryption."""
        if urlsplit(newurl).scheme not in ("http", "https"):
            raise DownloadError(f"{shown_url(req.full_url)} redirects to an address that is not http: refused ({code})")
        if urlsplit(req.full_url).scheme == "https" and urlsplit(newurl).scheme != "https":
            raise DownloadError(
                f"{shown_url(req.full_url)} redirects to {shown_url(newurl)}, which is not encrypted: refused"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]


def _open(url: str, have: int, validator: str | None) -> Any:
    headers = {"Accept-Encoding": "identity", "User-Agent": "matchrt"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if validator:
            headers["If-Range"] = validator
    opener = urllib.request.build_opener(_Redirects())
    try:
        return opener.open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError:
        raise
    except urllib.error.URLError as error:
        reason = error.reason
        if isinstance(reason, ConnectionResetError):
            raise CutOffError(f"no answer from {urlsplit(url).netloc.rpartition('@')[2]} ({reason})") from error
        if "certificate" in str(reason).lower():
            raise DownloadError(f"{shown_url(url)} has a certificate that is not trusted: {reason}") from error
        why = (reason.strerror or str(reason)) if isinstance(reason, OSError) else str(reason)
        raise UnreachableError(f"{urlsplit(url).hostname} cannot be reached ({why})") from error
    except (http.client.HTTPException, OSError) as error:
        raise CutOffError(str(error) or type(error).__name__) from error
    except ValueError as error:
        raise DownloadError(f"{shown_url(url)} is not an address: {error}") from error


def _http_error(url: str, error: urllib.error.HTTPError) -> Exception:
    if error.code in (408, 429, 500, 502, 503, 504):
        return CutOffError(f"the server answered {error.code} {error.reason}")
    if 300 <= error.code < 400:
        why = "to an address that is not http: refused" if "not allowed" in str(error.msg) else "without end"
        return DownloadError(f"{shown_url(url)} redirects {why} ({error.code})")
    hint = "It may ask for a log-in: download it by hand." if error.code in (401, 403) else None
    return DownloadError(
        f"{shown_url(url)} cannot be downloaded: the server answered {error.code} {error.reason}", hint=hint
    )


def _meta_path(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _url_id(url: str) -> str:
    return sha256(url.encode("utf-8")).hexdigest()


def _resumable(request: Request) -> tuple[int, str | None]:
    """Return (bytes to keep, validator): none unless they are of this address and a mix-up would be noticed."""
    try:
        have = request.part.stat().st_size
        meta = json.loads(_meta_path(request.part).read_text("utf-8"))
        validator = meta["validator"]
        same = meta["url"] == _url_id(request.url)
    except (OSError, ValueError, KeyError, TypeError):
        return 0, None
    if not same or not (validator or request.wanted.sha256):
        return 0, None
    return have, validator


def _receive(request: Request, response: Any, have: int) -> bool:
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise DownloadError(f"{shown_url(request.url)} is sent compressed, although that was not asked for")
    kept = have if response.status == 206 else 0
    if response.status == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if found is None or int(found[1]) != have:
            _start_over(request)
            raise CutOffError("the server sent another part of the file than was asked for")
        total = None if found[2] == "*" else int(found[2])
    else:
        length = response.headers.get("Content-Length")
        total = int(length) if length is not None and length.isdigit() else None
    _check_size(request, response, total)
    _write_meta(request, response.headers)
    received = _write(request, response, kept, total)
    if total is not None and received < total:
        raise CutOffError(f"{received} of {total} bytes came")
    if request.wanted.size is not None and received != request.wanted.size:
        _start_over(request)
        raise DownloadError(f"{shown_url(request.url)} has {received} bytes, and {request.wanted.size} were published")
    return kept > 0


def _check_size(request: Request, response: Any, total: int | None) -> None:
    wanted = request.wanted
    if total is not None and wanted.size is not None and total != wanted.size:
        raise DownloadError(f"{shown_url(request.url)} has {total} bytes, and {wanted.size} were published")
    chunked = response.headers.get("Transfer-Encoding", "").lower() == "chunked"
    if total is None and wanted.size is None and wanted.sha256 is None and not chunked:
        raise DownloadError(
            f"{shown_url(request.url)}: the server does not say how long the file is and no sha256 is known, "
            "so a cut-off download could not be told from a whole one",
            hint="Download it by hand.",
        )
    if total is not None:
        free = shutil.disk_usage(request.part.parent).free
        present = request.part.stat().st_size if request.part.exists() else 0
        if total - present > free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _write_meta(request: Request, headers: Message) -> None:
    etag = headers.get("ETag")
    validator = etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")
    _meta_path(request.part).write_text(json.dumps({"url": _url_id(request.url), "validator": validator}), "utf-8")


def _write(request: Request, response: Any, kept: int, total: int | None) -> int:
    """Append to the part file after its first `kept` bytes; return its length, synced to the disk."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(request.part, flags, 0o644), "r+b") as file:
        file.truncate(kept)
        file.seek(kept)
        received = kept
        try:
            while True:
                chunk = _read(response)
                if not chunk:
                    break
                received += len(chunk)
                if total is not None and received > total:
                    raise DownloadError(f"{shown_url(request.url)} is longer than its server said ({total} bytes)")
                file.write(chunk)
                if request.progress is not None:
                    request.progress(received, total)
        finally:
            file.flush()
        os.fsync(file.fileno())
    return received


def _read(response: Any) -> bytes:
    try:
        return bytes(response.read(_CHUNK))
    except (http.client.HTTPException, OSError) as error:
        raise CutOffError(str(error) or type(error).__name__) from error


def _range_refused(request: Request, error: urllib.error.HTTPError, have: int) -> bool:
    """The server has nothing after our bytes: the part is either whole, or of something else."""
    if error.headers.get("Content-Range") == f"bytes */{have}":
        return True
    _start_over(request)
    raise CutOffError("the file on the server is shorter than the part that was here")


def _start_over(request: Request) -> None:
    request.part.unlink(missing_ok=True)
    _meta_path(request.part).unlink(missing_ok=True)


def _copy_local(request: Request) -> bool:
    path = Path(urllib.request.url2pathname(urlsplit(request.url).path))
    try:
        with path.open("rb") as source:
            total = os.fstat(source.fileno()).st_size
            if request.wanted.size not in (None, total):
                raise DownloadError(f"{path} has {total} bytes, and {request.wanted.size} were published")
            received = _write(request, source, 0, total)
    except FileNotFoundError as error:
        raise DownloadError(f"{path} does not exist") from error
    if received != total:
        raise DownloadError(f"{path} changed while it was copied ({received} of {total} bytes)")
    return False
