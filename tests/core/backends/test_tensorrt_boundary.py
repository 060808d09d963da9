"""One module imports TensorRT, and every name that our code touches exists in every release it may meet."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import matchrt
from matchrt.backends.tensorrt._api import CAPABILITIES

SOURCES = Path(matchrt.__file__).parent
ROOM = SOURCES / "backends" / "tensorrt"
BOUNDARY = ROOM / "_api.py"
BINDINGS = ("tensorrt", "tensorrt_rtx", "tensorrt_lean", "tensorrt_dispatch")

RECEIVERS: dict[str, dict[str, str]] = {
    "_api.py": {"trt": "", "module": ""},
    "options.py": {"config": "IBuilderConfig"},
    "builder.py": {
        "api.module": "",
        "builder": "Builder",
        "network": "INetworkDefinition",
        "config": "IBuilderConfig",
        "parser": "OnnxParser",
        "profile": "IOptimizationProfile",
        "cache": "ITimingCache",
        "layer": "ILayer",
        "tensor": "ITensor",
        "i": "ITensor",
        "o": "ITensor",
        "error": "ParserError",
    },
    "runtime.py": {
        "api.module": "",
        "runtime": "Runtime",
        "engine": "ICudaEngine",
        "self._context": "IExecutionContext",
        "context": "IExecutionContext",
    },
    "tensors.py": {"engine": "ICudaEngine"},
    "scratch.py": {"engine": "ICudaEngine", "context": "IExecutionContext"},
}
"""How our code calls the binding's objects: by these names in these files, and by no other."""

GUARDED = {
    ("", "init_libnvinfer_plugins"): "plugin-library",
    ("", "IProgressMonitor"): "progress",
    ("IBuilderConfig", "progress_monitor"): "progress",
    ("PreviewFeature", "PROFILE_SHARING_0806"): "profile-sharing",
    ("IBuilderConfig", "max_num_tactics"): "max-num-tactics",
    ("IBuilderConfig", "num_compute_capabilities"): "compute-capabilities",
    ("IBuilderConfig", "set_compute_capability"): "compute-capabilities",
    ("ParserError", "node_name"): "parser-nodes",
    ("ParserError", "node_operator"): "parser-nodes",
    ("ILayer", "precision"): "layer-precision",
    ("ILayer", "set_output_type"): "layer-precision",
    ("NetworkDefinitionCreationFlag", "EXPLICIT_BATCH"): "explicit-batch",
    ("NetworkDefinitionCreationFlag", "STRONGLY_TYPED"): "strongly-typed",
    ("BuilderFlag", "FP16"): "half-flag",
    ("BuilderFlag", "OBEY_PRECISION_CONSTRAINTS"): "obey-precision",
    ("OnnxParserFlag", "NATIVE_INSTANCENORM"): "native-instancenorm",
    ("ExecutionContextAllocationStrategy", "USER_MANAGED"): "user-managed",
    ("ICudaEngine", "create_execution_context_without_device_memory"): "bare-context",
    ("ICudaEngine", "device_memory_size_v2"): "memory-size-v2",
    ("ICudaEngine", "device_memory_size"): "memory-size",
    ("IExecutionContext", "set_device_memory"): "set-memory",
}
"""What not every release has, and the capability that is asked for first."""


def modules(root: Path = SOURCES) -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(root.rglob("*.py")):
        yield path, ast.parse(path.read_text("utf-8"))


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module or ""
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = ast.unparse(node.func).rpartition(".")[2]
            if called in ("import_module", "__import__", "find_spec", "importorskip"):
                yield str(node.args[0].value)


def test_only_the_boundary_imports_tensorrt() -> None:
    guilty = [
        str(path.relative_to(SOURCES))
        for path, tree in modules()
        if path != BOUNDARY and any(name.partition(".")[0] in BINDINGS for name in imported(tree))
    ]
    assert guilty == []
    assert "importlib.import_module(name)" in BOUNDARY.read_text("utf-8")


def test_importing_the_backends_imports_no_binding() -> None:
    import subprocess
    import sys

    code = (
        "import sys, matchrt.backends.tensorrt.backend as b, matchrt.cli.build, matchrt.cli.engines, matchrt.engines.build;"
        "bad = {'tensorrt', 'tensorrt_rtx', 'torch', 'onnx', 'onnxruntime', 'cv2'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_runtime_is_made_in_one_place_after_the_driver_answered() -> None:
    """Without a GPU a Runtime ends the process: its one construction comes after `driver()`, which raises where there is none."""
    places = [
        (path, node)
        for path, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and ".Runtime(" in ast.unparse(node)
    ]
    assert [(p.name, n.name) for p, n in places] == [("runtime.py", "deserialize")]
    body = ast.unparse(places[0][1])
    assert body.index("driver(") < body.index(".Runtime(")


def touched() -> Iterator[tuple[str, str, str, int, list[str]]]:
    """(file, class or enum or "" for the module, member, line, keyword names) for every use of the binding."""
    for file, receivers in RECEIVERS.items():
        for node in ast.walk(ast.parse((ROOM / file).read_text("utf-8"))):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in receivers:
                yield file, receivers[ast.unparse(node.value)], node.attr, node.lineno, []
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = ast.unparse(node.func.value)
                if owner in receivers and node.keywords:
                    yield file, receivers[owner], node.func.attr, node.lineno, [str(k.arg) for k in node.keywords]
                if owner == "api" and node.func.attr == "enum" and all(isinstance(a, ast.Constant) for a in node.args):
                    kind, name = (str(a.value) for a in node.args if isinstance(a, ast.Constant))
                    yield file, kind, name, node.lineno, []


def exists(table: dict[str, Any], owner: str, member: str) -> bool:
    if not owner:
        return member in {*table["classes"], *table["enums"], *table["functions"]} or member.startswith("__")
    return member in table["enums"].get(owner, table["classes"].get(owner, {}))


def test_enough_is_looked_at() -> None:
    uses = {(owner, member) for _, owner, member, _, _ in touched()}
    assert len(uses) > 70
    for use in (
        ("Builder", "build_serialized_network"),
        ("IExecutionContext", "execute_async_v3"),
        ("BuilderFlag", "TF32"),
    ):
        assert use in uses


def test_every_name_exists_in_every_release_or_is_asked_for_first(stand_in: Any) -> None:
    wrong = []
    for release, table in stand_in.tables().items():
        for file, owner, member, line, _ in touched():
            if exists(table, owner, member):
                continue
            capability = GUARDED.get((owner, member))
            kind, needed = CAPABILITIES.get(capability or "", ("", ""))
            if capability is None or exists(table, kind, needed):
                wrong.append(f"{release}: {owner or 'module'}.{member} ({file}:{line})")
    assert wrong == []


@pytest.mark.parametrize("use", GUARDED, ids=lambda u: ".".join(u))
def test_every_guard_is_needed_and_really_asked(use: tuple[str, str], stand_in: Any) -> None:
    """The capability is asked for in each file that uses the name, and some release lacks the name."""
    assert any(not exists(t, *use) for t in stand_in.tables().values()) or use[0] in ("OnnxParserFlag", "")
    for file in {f for f, owner, member, _, _ in touched() if (owner, member) == use}:
        if file != "_api.py" and GUARDED[use] != "strongly-typed":  # asked for as `api.typed`
            assert f'"{GUARDED[use]}"' in (ROOM / file).read_text("utf-8"), file


def test_every_keyword_is_an_argument_of_every_release(stand_in: Any) -> None:
    checked = 0
    for release, table in stand_in.tables().items():
        for file, owner, member, line, keywords in touched():
            arguments = table["classes"].get(owner, {}).get(member)
            for keyword in keywords if arguments is not None else ():
                checked += 1
                assert keyword in arguments, f"{release}: {owner}.{member}({keyword}=) in {file}:{line}"
    assert checked >= 5


def test_every_capability_is_present_somewhere(stand_in: Any) -> None:
    for name, (kind, member) in CAPABILITIES.items():
        having = [r for r, t in stand_in.tables().items() if exists(t, kind, member)]
        assert having, name


def test_the_tables_say_what_the_release_notes_say(stand_in: Any) -> None:
    """Independent facts about the releases, so that a broken recorder would be noticed."""
    t = stand_in.tables()
    old, ten, new, rtx = (
        t[n] for n in ("tensorrt-8.6.1", "tensorrt-10.3.0", "tensorrt-11.4.0.106", "tensorrt_rtx-1.7.1.116")
    )
    assert "STRONGLY_TYPED" not in old["enums"]["NetworkDefinitionCreationFlag"]
    assert "FP16" in ten["enums"]["BuilderFlag"]
    assert "FP16" not in new["enums"]["BuilderFlag"]
    assert "EXPLICIT_BATCH" not in new["enums"]["NetworkDefinitionCreationFlag"]
    assert "IProgressMonitor" not in old["classes"]
    assert ten["classes"]["IProgressMonitor"]["phase_start"] == ["phase_name", "parent_phase", "num_steps"]
    assert "INT64" not in old["enums"]["DataType"]
    assert "SM89" in rtx["enums"]["ComputeCapability"]
    assert all("wheel" in table for table in t.values())
    assert all(len(table["sha256"]) == 64 for table in t.values() if table["module"] == "tensorrt")


def test_the_stand_in_invents_nothing(stand_in: Any) -> None:
    """Every public member of the stand-in exists in some recorded release; with one that does not, this fails."""
    tables = stand_in.tables().values()
    for name, cls in stand_in.IMPLEMENTED.items():
        for member in (m for m in vars(cls) if not m.startswith("_")):
            assert any(member in t["classes"].get(name, {}) for t in tables), f"{name}.{member}"


def test_the_stand_in_lacks_what_the_release_lacks(stand_in: Any) -> None:
    module = stand_in.make(stand_in.tables()["tensorrt-8.6.1"])
    config = module.IBuilderConfig()
    with pytest.raises(AttributeError, match="progress_monitor"):
        config.progress_monitor = None
    assert not hasattr(module.IBuilderConfig, "progress_monitor")
    assert not hasattr(module, "IProgressMonitor")
    new = stand_in.make(stand_in.tables()["tensorrt-11.4.0.106"])
    assert hasattr(new.IBuilderConfig, "progress_monitor")
    assert not hasattr(new.ILayer, "precision")
    assert new.BuilderFlag.TF32 != module.BuilderFlag.TF32 or new.BuilderFlag.REFIT != module.BuilderFlag.REFIT


@pytest.mark.rtx
def test_the_recorded_rtx_table_is_the_installed_one(stand_in: Any) -> None:
    import tensorrt_rtx

    table = stand_in.tables().get(f"tensorrt_rtx-{tensorrt_rtx.__version__}")
    if table is None:
        pytest.skip(
            f"NOT RUN: no table is recorded for tensorrt_rtx {tensorrt_rtx.__version__}; run tools/record_tensorrt_api.py"
        )
    for name, members in table["classes"].items():
        assert sorted(members) == sorted(m for m in dir(getattr(tensorrt_rtx, name)) if not m.startswith("_")), name
    for name, names in table["enums"].items():
        assert sorted(names) == sorted(getattr(tensorrt_rtx, name).__members__), name
