"""Bundles made from a bundle with some graphs changed: more outputs to look inside, emulated precision, planted faults."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from matchrt.bundle import Bundle, read_bundle
from matchrt.bundle.manifest import FILE_NAME
from matchrt.bundle.reader import hash_file
from matchrt.export.onnx_export import save_model


def derive_bundle(bundle: Bundle, folder: Path, models: Mapping[str, onnx.ModelProto], *, only: bool = False) -> Bundle:
    """`bundle` in the new folder `folder`, with `models` in place of the graphs of those networks.

    Outputs that a model has beyond the contract are added to it. `only` leaves out all other networks and their steps.
    """
    folder.mkdir(parents=True)
    data = json.loads(bundle.manifest.model_dump_json())
    if only:
        data["networks"] = [n for n in data["networks"] if n["name"] in models]
        data["steps"] = [s for s in data["steps"] if s["network"] in models]
    files: dict[str, Any] = {}
    for network in data["networks"]:
        if network["name"] in models:
            path = folder / network["file"]
            side = save_model(models[network["name"]], path)
            network["external_data"] = side.name if side else None
            network["outputs"] += _more_outputs(models[network["name"]], network["outputs"])
            for written in filter(None, (path, side)):
                files[written.name] = {"sha256": hash_file(written), "size": written.stat().st_size}
        else:
            for name in filter(None, (network["file"], network["external_data"])):
                _same_file(bundle.path / name, folder / name)
                files[name] = data["files"][name]
    data["files"] = files
    (folder / FILE_NAME).write_text(json.dumps(data), "utf-8")
    return read_bundle(folder)


def _more_outputs(model: onnx.ModelProto, known: list[dict[str, Any]]) -> list[dict[str, Any]]:
    names = {o["name"] for o in known}
    found = []
    for value in model.graph.output:
        if value.name in names:
            continue
        kind = value.type.tensor_type
        sizes = [d.dim_param or d.dim_value for d in kind.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
        axes = [f"axis{i}" for i in range(len(sizes))]
        found.append(
            {"name": value.name, "dtype": dtype, "shape": sizes, "axes": axes, "meaning": "inside the network"}
        )
    return found


def _same_file(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
