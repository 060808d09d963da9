"""Every error that matchrt raises on purpose: one line that says what, where and why, and a hint that names the remedy.

The exit codes are the command line's contract: 0 done, 1 failed, 2 usage, 3 verification fell short,
4 the environment lacks something.
"""

from __future__ import annotations

from collections.abc import Mapping


class MatchrtError(Exception):
    """Base of all deliberate errors.

    `message` is one clear line (a list may follow on further lines); `hint` is the next command or remedy.
    """

    exit_code: int = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(MatchrtError):
    """The request itself is wrong: an unknown name, a value out of range, options that exclude each other."""

    exit_code = 2


class VerificationError(MatchrtError):
    """A converted network differs from its reference by more than the matcher's tolerance."""

    exit_code = 3


class EnvironmentLackError(MatchrtError):
    """The machine or the Python environment lacks something: a package, a GPU, a library, a licence consent."""

    exit_code = 4


class WeightsError(MatchrtError):
    """A checkpoint cannot be read, or its tensors do not account for the network's."""


class BundleError(MatchrtError):
    """A bundle is incomplete, changed, of a newer schema, or not a bundle."""


class ImageError(MatchrtError):
    """An image cannot be read or is refused (kind, size, depth)."""


class PluginError(MatchrtError):
    """A plugin is broken, or two plugins contradict each other."""


class BackendError(MatchrtError):
    """A backend refused to build, load or run a network."""


class DownloadError(MatchrtError):
    """A download failed, was interrupted, or its content is not what was pinned."""


class ExportError(MatchrtError):
    """A network could not be exported, or a graph pass failed."""


def error_record(error: BaseException) -> dict[str, str | None]:
    """`error` as JSON-able values, for another process: the name of its nearest class here, message and hint."""
    if isinstance(error, MatchrtError):
        name = next(c.__name__ for c in type(error).__mro__ if globals().get(c.__name__) is c)
        return {"error": name, "message": error.message, "hint": error.hint}
    lines = str(error).strip().splitlines()
    return {"error": "BackendError", "message": f"{type(error).__name__}: {lines[0] if lines else ''}", "hint": None}


def error_from_record(record: Mapping[str, str | None]) -> MatchrtError:
    """The error that `error_record` described."""
    kind = globals().get(str(record["error"]))
    if not (isinstance(kind, type) and issubclass(kind, MatchrtError)):
        kind = BackendError
    return kind(str(record["message"]), hint=record["hint"])
