"""A bundle opens only as it was written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import onnx
import pytest

from matchrt.bundle import BundleManifest, read_bundle
from matchrt.bundle.external import external_locations
from matchrt.errors import BundleError

ROOT = Path(__file__).parents[3]


@pytest.fixture
def bundle(mini_bundle: Path, tmp_path: Path) -> Path:
    """A copy that may be spoilt."""
    return Path(shutil.copytree(mini_bundle, tmp_path / "bundle"))


def edit(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = bundle / "bundle.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_the_published_schema_is_the_one_in_force() -> None:
    published = json.loads((ROOT / "docs/bundle.schema.json").read_text())
    assert published == BundleManifest.model_json_schema(), "run: uv run python tools/write_schema.py"


def test_a_written_manifest_satisfies_the_published_schema(mini_bundle: Path) -> None:
    schema = json.loads((ROOT / "docs/bundle.schema.json").read_text())
    data = json.loads((mini_bundle / "bundle.json").read_text())
    jsonschema.validate(data, schema)
    data["networks"][0]["file"] = "../elsewhere.onnx"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data, schema)


def test_the_contract_is_that_of_the_graphs(mini_bundle: Path) -> None:
    manifest = read_bundle(mini_bundle).manifest
    for network in manifest.networks:
        graph = onnx.load(mini_bundle / network.file).graph
        for contract, values in ((network.inputs, graph.input), (network.outputs, graph.output)):
            assert [t.name for t in contract] == [v.name for v in values]
            for tensor, value in zip(contract, values, strict=True):
                dims = tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim)
                assert tensor.shape == dims
                assert {d for d in dims if isinstance(d, str)} <= {a.name for a in manifest.axes}


def test_graphs_carry_no_traces_of_the_machine(mini_bundle: Path) -> None:
    for path in mini_bundle.glob("*.onnx"):
        data = path.read_bytes()
        assert b"stack_trace" not in data
        assert b"site-packages" not in data
        assert b".py" not in data


@pytest.mark.parametrize("network", ["extractor", "matcher"])
def test_graphs_hold_no_data_dependent_shapes(mini_bundle: Path, network: str) -> None:
    kinds = {n.op_type for n in onnx.load(mini_bundle / f"{network}.onnx").graph.node}
    assert not kinds & {"NonZero", "ScatterND", "ScatterElements", "If", "Loop", "Unique", "Compress", "Attention"}


def test_a_changed_byte_is_found(bundle: Path) -> None:
    path = bundle / "matcher.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match="changed after conversion"):
        read_bundle(bundle)


def test_a_lost_or_shortened_file_is_found(bundle: Path) -> None:
    path = bundle / "matcher.onnx"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(BundleError, match="has .* bytes, the manifest says"):
        read_bundle(bundle)
    path.unlink()
    with pytest.raises(BundleError, match="lacks matcher.onnx"):
        read_bundle(bundle)


def test_a_link_in_place_of_a_file_is_refused(bundle: Path, tmp_path: Path) -> None:
    path = bundle / "matcher.onnx"
    path.rename(tmp_path / "away.onnx")
    path.symlink_to(tmp_path / "away.onnx")
    with pytest.raises(BundleError, match="links are refused"):
        read_bundle(bundle)


def test_a_newer_schema_is_told_apart_from_a_broken_one(bundle: Path) -> None:
    edit(bundle, lambda d: d.update(schema_version=2, new_field=1))
    with pytest.raises(BundleError, match="schema version 2, this matchrt reads up to 1") as caught:
        read_bundle(bundle)
    assert "upgrade matchrt" in str(caught.value.hint)
    edit(bundle, lambda d: d.update(schema_version=1))
    with pytest.raises(BundleError, match="new_field: Extra inputs are not permitted"):
        read_bundle(bundle)


@pytest.mark.parametrize("name", ["../matcher.onnx", "/etc/passwd", "a/b.onnx", ".hidden"])
def test_a_file_name_that_leaves_the_folder_is_refused(bundle: Path, name: str) -> None:
    def change(data: dict[str, Any]) -> None:
        data["networks"][1]["file"] = name

    edit(bundle, change)
    with pytest.raises(BundleError, match="not a valid manifest"):
        read_bundle(bundle)


def test_a_file_that_the_manifest_does_not_list_is_refused(bundle: Path) -> None:
    edit(bundle, lambda d: d["files"].pop("matcher.onnx"))
    with pytest.raises(BundleError, match="the manifest does not list"):
        read_bundle(bundle)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema_version": "1"}', "\udcff"])
def test_a_manifest_that_is_none(bundle: Path, text: str) -> None:
    (bundle / "bundle.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(BundleError):
        read_bundle(bundle)


@pytest.mark.parametrize("location", ["../outside.bin", "/etc/passwd", "extra.bin"])
def test_external_data_that_the_manifest_does_not_declare_is_refused(bundle: Path, location: str) -> None:
    from matchrt.bundle.reader import hash_file

    path = bundle / "matcher.onnx"
    model = onnx.load(path)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    path.write_bytes(model.SerializeToString())
    assert external_locations(path) == {location}

    def change(data: dict[str, Any]) -> None:
        data["files"]["matcher.onnx"] = {"sha256": hash_file(path), "size": path.stat().st_size}

    edit(bundle, change)
    with pytest.raises(BundleError, match="outside the bundle"):
        read_bundle(bundle)


def test_external_data_is_found_in_attributes_and_subgraphs(tmp_path: Path) -> None:
    def outside(name: str) -> onnx.TensorProto:
        tensor = onnx.TensorProto(name=name, data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value=name)
        return tensor

    inner = onnx.helper.make_graph([], "inner", [], [], initializer=[outside("inner.bin")])
    constant = onnx.helper.make_node("Constant", [], ["c"], value=outside("constant.bin"))
    branch = onnx.helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)
    sparse = onnx.SparseTensorProto(values=outside("sparse.bin"), dims=[1])
    graph = onnx.helper.make_graph([constant, branch], "g", [], [], sparse_initializer=[sparse])
    function = onnx.helper.make_function("d", "f", [], ["c"], [constant], [onnx.helper.make_opsetid("", 18)])
    function.node[0].attribute[0].t.external_data[0].value = "function.bin"
    path = tmp_path / "m.onnx"
    path.write_bytes(onnx.helper.make_model(graph, functions=[function]).SerializeToString())
    assert external_locations(path) == {"inner.bin", "constant.bin", "sparse.bin", "function.bin"}


def test_what_is_no_bundle_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="does not exist"):
        read_bundle(tmp_path / "none")
    with pytest.raises(BundleError, match="it has no bundle.json"):
        read_bundle(tmp_path)
    file = tmp_path / "weights.pth"
    file.write_bytes(b"x")
    with pytest.raises(BundleError, match="is a file, not a bundle"):
        read_bundle(file)
    (tmp_path / "m.onnx").write_bytes(b"this is not protobuf at all")
    with pytest.raises(BundleError, match="is not an ONNX file"):
        external_locations(tmp_path / "m.onnx")
