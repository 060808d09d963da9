"""Write down what was built: the bundle's manifest."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from matchrt.bundle.manifest import (
    AppliedRecord,
    AxisContract,
    BundleManifest,
    Conventions,
    FileRecord,
    MatcherIdentity,
    NetworkContract,
    StepContract,
    TensorContract,
    WeightsRecord,
)
from matchrt.bundle.reader import hash_file
from matchrt.errors import ExportError
from matchrt.export.check import CheckResult
from matchrt.export.weights import LoadedWeights
from matchrt.model import Axis, ExampleInputs, GraphPass, MatcherSpec, NetworkSpec, Settings, TensorSpec, Variant
from matchrt.patches import Patch

if TYPE_CHECKING:
    from matchrt.export.convert import ConvertRequest

COORDINATES = (
    "keypoints are (x, y) in pixels of the original image, pixel centres at integers; sizes are (height, width)"
)
EMPTY = "no matches is a result of shapes (0, 2), (0, 2), (0,), never an error"
TOOLS = ("matchrt", "torch", "onnx", "onnxscript", "onnxruntime", "numpy")


@dataclass(frozen=True)
class Built:
    """One exported network and what shaped it. `model` has its inputs and outputs, without nodes and weights."""

    spec: NetworkSpec
    model: onnx.ModelProto
    example: ExampleInputs
    side_file: Path | None
    patches: tuple[Patch, ...]
    passes: tuple[GraphPass, ...]


def build_manifest(
    spec: MatcherSpec,
    variant: Variant,
    settings: Settings,
    weights: LoadedWeights,
    built: list[Built],
    check: CheckResult,
    folder: Path,
    request: ConvertRequest,
) -> BundleManifest:
    """The manifest of the bundle in `folder`, whose ONNX files are written already."""
    axes: dict[str, Axis] = {}
    for b in built:
        for dynamic in b.example.dynamic.values():
            for axis in dynamic.values():
                if axes.setdefault(axis.name, axis) != axis:
                    raise ExportError(f"axis {axis.name!r} is declared with two different ranges")
    stages = {s.name: s.stage for s in spec.settings}
    plain: dict[str, Any] = {n: list(v) if isinstance(v, tuple) else v for n, v in settings.items()}
    threshold = plain.get("threshold")
    return BundleManifest(
        schema_version=1,
        matcher=MatcherIdentity(
            id=spec.id,
            variant=variant.name,
            title=spec.title,
            family=spec.family.value,
            licence=spec.licence,
            paper=spec.paper,
        ),
        weights=WeightsRecord(
            sources=weights.sources,
            random_seed=weights.random_seed,
            allow_missing=request.allow_missing,
            licence=weights.licence,
            report=weights.report,
        ),
        settings={n: v for n, v in plain.items() if stages[n] == "convert"},
        match_settings={n: v for n, v in plain.items() if stages[n] == "match"},
        networks=tuple(_network(b) for b in built),
        axes=tuple(
            AxisContract(name=a.name, min=a.min, opt=a.opt, max=a.max, divisor=a.divisor) for a in axes.values()
        ),
        steps=tuple(
            StepContract(network=s.network, inputs=dict(s.inputs), outputs=dict(s.outputs))
            for s in spec.steps_of(variant)
        ),
        conventions=Conventions(
            coordinates=COORDINATES,
            preprocessing=spec.input_rules,
            empty_result=EMPTY,
            score=spec.score_meaning + (f"; default threshold {threshold}" if threshold is not None else ""),
        ),
        patches=tuple(
            AppliedRecord(name=p.name, reason=p.reason, exact=p.exact, tolerance=p.tolerance)
            for p in {p.name: p for b in built for p in b.patches}.values()
        ),
        passes=tuple(
            AppliedRecord(name=p.name, reason=p.reason) for p in {p.name: p for b in built for p in b.passes}.values()
        ),
        check=check.to_dict(),
        tools=_tools(),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        files={
            path.name: FileRecord(sha256=hash_file(path), size=path.stat().st_size) for path in sorted(folder.iterdir())
        },
    )


def _tools() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in TOOLS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _network(built: Built) -> NetworkContract:
    graph = built.model.graph
    opsets = {o.domain: o.version for o in built.model.opset_import}
    return NetworkContract(
        name=built.spec.name,
        file=f"{built.spec.name}.onnx",
        external_data=built.side_file.name if built.side_file else None,
        opset=opsets[""],
        inputs=tuple(_tensor(s, graph.input) for s in built.spec.inputs),
        outputs=tuple(_tensor(s, graph.output) for s in built.spec.outputs),
    )


def _tensor(spec: TensorSpec, values: Any) -> TensorContract:
    by_name: Mapping[str, Any] = {v.name: v for v in values}
    if spec.name not in by_name:
        raise ExportError(f"the exported graph has no tensor {spec.name!r}")
    kind = by_name[spec.name].type.tensor_type
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)).name
    shape = tuple(d.dim_param or d.dim_value for d in kind.shape.dim)
    if dtype != spec.dtype:
        raise ExportError(f"tensor {spec.name!r} was exported as {dtype}, its specification says {spec.dtype}")
    if len(shape) != len(spec.axes):
        raise ExportError(f"tensor {spec.name!r} has shape {shape}, its specification names the axes {spec.axes}")
    return TensorContract(name=spec.name, dtype=dtype, shape=shape, axes=spec.axes, meaning=spec.meaning)
