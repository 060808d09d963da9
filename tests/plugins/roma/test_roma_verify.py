"""Faults planted in RoMa's graphs (narrow networks): `matchrt verify` falls short and names the module."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper
from roma_files import write_files
from roma_oracle import tiny_config

import matchrt_roma.build
from matchrt.bundle import read_bundle
from matchrt.cli import run
from matchrt.graph.emulate import emulate_tf32
from matchrt.verify.derive import derive_bundle

Verify = Callable[..., dict]  # type: ignore[type-arg]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[str]]]:
    """A narrow RoMa without refinement, and the options that name its files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matchrt_roma.build, "CONFIG", tiny_config(37))
        folder = tmp_path_factory.mktemp("roma-verify")
        files = write_files(folder, tiny_config(37))
        command = ["convert", "roma:coarse", *map(str, files.weights), "-o", str(folder / "b"), "--set", "size=112x140"]
        assert run(command) == 0
        given = [str(w) for w in files.weights]
        checkpoints = []
        for option, path in zip(given[::2], given[1::2], strict=True):
            role = option.removeprefix("--weights").removeprefix("-")
            checkpoints += ["--checkpoint", f"{role}={path}" if role else path]
        yield folder / "b", checkpoints


@pytest.fixture
def verify(bundle: tuple[Path, list[str]], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Verify:
    """Plant a change in one graph, verify on the command line, and return (exit code with) its JSON."""

    def call(network: str | None = None, change: Callable[[onnx.ModelProto], object] | None = None, *more: str) -> dict:  # type: ignore[type-arg]
        path = bundle[0]
        if network is not None and change is not None:
            opened = read_bundle(path)
            model = onnx.load(str(opened.graph(network)))
            change(model)
            path = derive_bundle(opened, tmp_path / "planted", {network: model}).path
        capfd.readouterr()
        options = [*bundle[1], "--reference-option", "device=cpu", "--threads", "1", "--json", *more]
        code = run(["verify", str(path), *options])
        captured = capfd.readouterr()
        return {"code": code, **json.loads(captured.out)}

    return call


def swapped_blocks(model: onnx.ModelProto) -> None:
    """The weights of the match decoder's first two blocks, exchanged."""
    constants = {t.name for t in model.graph.initializer}
    first, second = ([n for n in model.graph.node if n.name.startswith(f"decoder.blocks.{i}")] for i in (0, 1))
    assert [n.op_type for n in first] == [n.op_type for n in second]
    for a, b in zip(first, second, strict=True):
        for i, (x, y) in enumerate(zip(list(a.input), list(b.input), strict=True)):
            if x in constants and y in constants:
                a.input[i], b.input[i] = y, x


def half_coordinates(model: onnx.ModelProto) -> None:
    """The flow that scale 8 starts from, through float16."""
    nodes = list(model.graph.node)
    at = next(i for i, n in enumerate(nodes) if n.op_type == "Resize" and n.name.startswith("stage8/"))
    flow = nodes[at].output[0]
    nodes[at].output[0] = f"{flow}_exact"
    nodes[at + 1 : at + 1] = [
        helper.make_node("Cast", [f"{flow}_exact"], [f"{flow}_half"], to=TensorProto.FLOAT16, name="stage8/to_half"),
        helper.make_node("Cast", [f"{flow}_half"], [flow], to=TensorProto.FLOAT, name="stage8/from_half"),
    ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def tf32_products(model: onnx.ModelProto) -> None:
    """Every product of the Gaussian process as TF32 units compute it."""
    model.CopyFrom(emulate_tf32(model))


def test_the_clean_bundle_passes(verify: Verify) -> None:
    out = verify()
    assert out["code"] == 0
    assert out["passed"]
    assert out["location"] is None
    assert out["pairs"][0]["warp"]["mean"] < 0.01
    assert out["pairs"][0]["same"] > 0.99


@pytest.mark.parametrize(
    ("network", "change", "place"),
    [
        ("coarse_final", swapped_blocks, "decoder.blocks.0"),
        ("coarse_final", half_coordinates, "stage8"),
        ("gp", tf32_products, "process"),
    ],
    ids=["swapped-block", "half-coordinates", "tf32-solve"],
)
def test_a_planted_fault_is_caught_and_its_module_named(
    verify: Verify, network: str, change: Callable[[onnx.ModelProto], object], place: str
) -> None:
    out = verify(network, change)
    assert out["code"] == 3
    assert out["failures"]
    found = out["location"]
    assert found["network"] == network
    assert found["place"].startswith(place), found["sentence"]
    assert not found["place"].startswith("decoder.blocks.1")
    assert found["point"]["error"] > 10 * found["point"]["inherited"]


def test_the_file_may_be_the_reference(verify: Verify, bundle: tuple[Path, list[str]]) -> None:
    """`--against CHECKPOINT` takes any file, also one that is not the bundle's: then the difference is told."""
    main = bundle[1][1]
    out = verify(None, None, "--against", main, "--no-locate")
    assert out["code"] == 0
