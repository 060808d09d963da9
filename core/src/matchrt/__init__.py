"""Image-matcher checkpoints to verified ONNX bundles and engines.

    import matchrt
    matcher = matchrt.load("bundle")
    matches = matcher("a.jpg", "b.jpg")

Importing this package loads neither torch, onnx, onnxruntime, cv2 nor tensorrt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matchrt.errors import MatchrtError
    from matchrt.export.convert import convert
    from matchrt.matches import Matches
    from matchrt.runtime import Matcher, load

__version__ = "0.1.0"
__all__ = ["Matcher", "Matches", "MatchrtError", "__version__", "convert", "load"]

_HOME = {
    "Matcher": "matchrt.runtime",
    "Matches": "matchrt.matches",
    "MatchrtError": "matchrt.errors",
    "convert": "matchrt.export.convert",
    "load": "matchrt.runtime",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'matchrt' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
