"""Measured speed: contenders in worker processes, rounds interleaved, receipts, tables and plots from them."""

from __future__ import annotations
