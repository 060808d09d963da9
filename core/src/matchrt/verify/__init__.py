"""Compare an engine with a reference on image pairs, judge it by the matcher's tolerance, and say where a difference enters."""

from __future__ import annotations

from matchrt.verify.run import VerifyRequest, VerifyResult, run_verify

__all__ = ["VerifyRequest", "VerifyResult", "run_verify"]
