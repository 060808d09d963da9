"""What rounding to half does by itself: the yardstick where random weights leave nothing but tensors to judge a half engine by.

A fixed bound holds a network that multiplies rounding to less than arithmetic can do, and another to more. So an engine beyond it is
compared with the bundle's own graph in float16 emulated on this CPU, every half tensor rounded and products accumulated in float32,
against the same graph in float32: a fault of the graph is in both and excuses nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from matchrt.errors import EnvironmentLackError, UsageError
from matchrt.verify.bounds import ROUNDING_FACTOR, tensor_failure
from matchrt.verify.subjects import How, opened

if TYPE_CHECKING:
    from matchrt.verify.run import Compared, PairResult, VerifyRequest


def with_rounding(
    compared: Compared, results: Sequence[PairResult], request: VerifyRequest
) -> tuple[list[PairResult], tuple[str, ...]]:
    """The pairs, with `rounding` where a tensor is beyond the fixed bound; and notes, such as why nothing could be emulated."""
    bounds = compared.bounds
    late = [r for r in results if any(tensor_failure(d, bounds) for d in r.equal)]
    if bounds.exact or not bounds.tensors or request.emulate or not late:
        return list(results), ()
    from matchrt.verify.emulated import opened_emulated

    bundle, hooks, how, progress = compared.bundle, compared.hooks, request.engine, compared.progress
    try:
        with (
            opened_emulated(bundle, hooks, how, progress) as emulated,
            opened(bundle, How(threads=how.threads), hooks.plugins, progress) as exact,
        ):
            alone = replace(compared, engine=emulated, reference=exact).all([r.pair for r in late])
    except (UsageError, EnvironmentLackError) as error:
        return list(results), (f"held to the fixed bound: rounding cannot be emulated here: {error.message}",)
    rounding = {r.pair.name: tuple(d.relative for d in r.equal) for r in alone}
    note = f"beyond the fixed bound: held to {ROUNDING_FACTOR:g} times what rounding to half does here by itself, emulated on this CPU"
    return [replace(r, rounding=rounding.get(r.pair.name, ())) for r in results], (note,)
