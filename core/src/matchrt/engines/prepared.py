"""From a network of a bundle to a graph file ready for one backend; and a fingerprint of the code that decides how."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from matchrt.bundle import Bundle
from matchrt.errors import BundleError, EnvironmentLackError
from matchrt.model import PrecisionRule, Stage, Target
from matchrt.plugins import MatcherHooks
from matchrt.weights.hashing import file_sha256

if TYPE_CHECKING:
    from matchrt.graph.linter import Finding

_INLINE_LIMIT = 1_900_000_000


@dataclass(frozen=True)
class Prepared:
    """A graph file for one backend. `kept` names nodes for layer constraints; `findings` are the linter's.

    `half`: whether anything computes in float16; if not, the engine is built in float32, and nothing needs to be kept.
    """

    graph: Path
    sha256: str
    """Over the graph with its weights, the side file included."""
    applied: tuple[str, ...]
    notes: tuple[str, ...]
    findings: tuple[Finding, ...]
    kept: tuple[str, ...]
    half: bool = False


def prepare_network(
    bundle: Bundle,
    hooks: MatcherHooks,
    network: str,
    target: Target,
    freeze: Mapping[str, int],
    folder: Path,
    more_rules: Sequence[PrecisionRule] = (),
) -> Prepared:
    """Prepare `network` for `target` into `folder`; findings that refuse the build are returned too, not raised.

    `more_rules` say what stays in float32 besides what the matcher's own rules do.

    Raises `EnvironmentLackError` where the onnx package is missing, `ExportError` naming the pass that failed.
    """
    try:
        import onnx

        from matchrt.graph.linter import lint
        from matchrt.graph.prepare import prepare
        from matchrt.graph.slice_steps import WRITE_SLICE_STEPS
    except ModuleNotFoundError as error:
        raise EnvironmentLackError(
            f"preparing a graph needs {error.name}, which is not installed", hint="pip install 'matchrt[convert]'"
        ) from None
    try:
        model = onnx.load(str(bundle.graph(network)))
    except Exception as error:  # protobuf and onnx raise classes of their own
        raise BundleError(f"network {network!r} cannot be read: {error}") from error
    rules = [r for r in hooks.precision_rules(target) if r.networks is None or network in r.networks] + [*more_rules]
    passes = [*hooks.graph_passes(target, Stage.PREPARE, network)]
    if target.backend.startswith("tensorrt"):
        passes.append(WRITE_SLICE_STEPS)
    made = prepare(model, target, network=network, freeze=freeze, rules=rules, passes=passes)
    findings = tuple(lint(made.model, target))
    graph = folder / f"{network}.onnx"
    side = _save(made.model, graph)
    digest = file_sha256(graph) if side is None else _join([file_sha256(graph), file_sha256(side)])
    kept = tuple(k.node for k in made.precision.kept) if made.precision and made.half else ()
    return Prepared(graph, digest, made.applied, made.notes, findings, kept, made.half)


def _save(model: object, graph: Path) -> Path | None:
    import onnx

    assert isinstance(model, onnx.ModelProto)
    size = sum(len(t.raw_data) or 4 * len(t.float_data) for t in model.graph.initializer)
    if size < _INLINE_LIMIT:
        graph.write_bytes(model.SerializeToString(deterministic=True))
        return None
    side = graph.with_name(f"{graph.name}.data")
    onnx.save_model(model, str(graph), save_as_external_data=True, all_tensors_to_one_file=True, location=side.name)
    return side


def code_fingerprint(hooks: MatcherHooks) -> str:
    """sha256 over the sources that decide how graphs are prepared: core's and those of the matcher's plugins.

    An engine remembers it, so that one made by other passes or rules is not taken for what the present code would make.
    """
    roots = [Path(__file__).parent.parent / room for room in ("graph", "engines", "backends")]
    return _join([_sources(root) for root in (*roots, *hooks.sources())])


@lru_cache(maxsize=32)
def _sources(root: Path) -> str:
    if root.is_file():
        return file_sha256(root)
    return _join([f"{p.relative_to(root).as_posix()} {file_sha256(p)}" for p in sorted(root.rglob("*.py"))])


def _join(texts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()
