"""Reading and preprocessing in processes of their own, which do not share Python's lock with the one that feeds the device."""

from __future__ import annotations

from matchrt.runtime.readers.pool import ReaderPool

__all__ = ["ReaderPool"]
