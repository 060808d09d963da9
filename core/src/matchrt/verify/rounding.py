"""What rounding to half does by itself: the yardstick where random weights leave nothing but tensors to judge a half engine by.

A fixed bound holds a network that multiplies rounding to less than arithmetic can do, and another to more. So an engine beyond it is
compared with the same graph in float16 emulated on this CPU, every half tensor rounded and products accumulated in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from matchrt.errors import EnvironmentLackError, UsageError
from matchrt.verify.bounds import tensor_failure

if TYPE_CHECKING:
    from matchrt.verify.run import Compared, PairResult, VerifyRequest


def with_rounding(compared: Compared, results: Sequence[PairResult], request: VerifyRequest) -> list[PairResult]:
    """The pairs, with `rounding` where a tensor is beyond the fixed bound. Unchanged where nothing is, or nothing can be emulated."""
    bounds = compared.bounds
    late = [r for r in results if any(tensor_failure(d, bounds) for d in r.equal)]
    if bounds.exact or not bounds.tensors or request.emulate or not late:
        return list(results)
    from matchrt.verify.emulated import opened_emulated

    try:
        with opened_emulated(compared.bundle, compared.hooks, request.engine, compared.progress) as emulated:
            alone = replace(compared, engine=emulated).all([r.pair for r in late])
    except (UsageError, EnvironmentLackError):
        return list(results)  # a backend that prepares no graphs, or nothing here to run them: the fixed bound stands
    rounding = {r.pair.name: tuple(d.relative for d in r.equal) for r in alone}
    return [replace(r, rounding=rounding.get(r.pair.name, ())) for r in results]
