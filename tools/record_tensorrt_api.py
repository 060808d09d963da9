#!/usr/bin/env python3
"""Record what TensorRT's Python binding offers, from a real binding wheel, without TensorRT's libraries and without a GPU.

    pip download --no-deps --only-binary=:all: -d wheels tensorrt-cu13-bindings==11.4.0.106
    tools/record_tensorrt_api.py -o tests/core/backends/data wheels/*.whl

The binding's extension module needs about ten C symbols of libnvinfer and its parser. Empty stand-ins for those libraries, made with
gcc, let it be imported; every class, member, argument name and enum name is then read from the module itself. Numbers of enums are
left out on purpose: they differ between releases. The wheel must be for the Python that runs this script.

`tensorrt_rtx` (installed, with its libraries) is recorded with `--installed tensorrt_rtx`.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

SKIPPED = re.compile(r"^(I\w+Layer|IPlugin\w*|Plugin\w*|ILoop\w*|IIf\w*|IAttention\w*|Dims\w*|IDim\w*|IExpr\w*)$")
"""Classes that nobody uses who takes networks from ONNX; `ILayer` and `IPluginRegistry` are kept."""
KEPT = {"ILayer", "IPluginRegistry"}


def record(module: Any) -> dict[str, Any]:
    """Classes (members, with the argument names of methods), enums (names) and functions of `module`."""
    classes: dict[str, dict[str, list[str] | None]] = {}
    enums: dict[str, list[str]] = {}
    functions: dict[str, list[str] | None] = {}
    for name in sorted(dir(module)):
        value = getattr(module, name)
        if name.startswith("_") or (SKIPPED.match(name) and name not in KEPT):
            continue
        if isinstance(value, type):
            members = getattr(value, "__members__", None)
            if members is not None:
                enums[name] = sorted(members)
            elif value.__module__.startswith(("tensorrt", module.__name__)):
                classes[name] = {m: arguments(value, m) for m in sorted(dir(value)) if not m.startswith("_")}
        elif type(value).__name__ == "builtin_function_or_method":
            functions[name] = _parse(value.__doc__, name)
    return {"classes": classes, "enums": enums, "functions": functions}


def arguments(cls: type, member: str) -> list[str] | None:
    """Argument names of a method as pybind11 documents them; None for a property."""
    value = getattr(cls, member)
    return None if isinstance(value, property) else _parse(value.__doc__, member)


def _parse(doc: str | None, name: str) -> list[str] | None:
    found = re.search(rf"\b{re.escape(name)}\((.*?)\) ->", doc or "", re.S)
    if found is None:
        return []
    names = re.findall(r"(?:^|, )(\w+): ", found.group(1))
    return [n for n in names if n != "self"]


def import_wheel(wheel: Path, folder: Path) -> Any:
    """The binding module of `wheel`, unpacked in `folder` beside stand-ins for the libraries that it links to."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    binding = next(folder.glob("tensorrt*/tensorrt*.so"))
    dynamic = subprocess.run(["readelf", "-d", binding], check=True, capture_output=True, text=True).stdout
    listing = subprocess.run(["nm", "-D", "--undefined-only", binding], check=True, capture_output=True, text=True)
    # Symbols of the C library carry a version (@GLIBC_2.17), those of the interpreter begin with Py: the rest is TensorRT's.
    symbols = re.findall(r" U ((?!_?Py)\w+)$", listing.stdout, re.M)
    source = folder / "stand_in.c"
    source.write_text("\n".join(f"void *{s}(void) {{ return 0; }}" for s in symbols))
    import ctypes

    for soname in re.findall(r"\[(libnv\w+\.so[.\d]*)\]", dynamic):
        library = folder / soname
        subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source, f"-Wl,-soname,{soname}"], check=True)
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    sys.path.insert(0, str(folder))
    return importlib.import_module(binding.parent.name)


def one(source: str, output: Path) -> None:
    """Record one wheel, or one installed module, in this process."""
    with tempfile.TemporaryDirectory() as folder:
        wheel = Path(source)
        if wheel.suffix == ".whl":
            module = import_wheel(wheel, Path(folder))
            origin = {"wheel": wheel.name, "sha256": hashlib.sha256(wheel.read_bytes()).hexdigest()}
            name = "tensorrt"
        else:
            module, name = importlib.import_module(source), source
            origin = {"wheel": "installed package"}
        table = {"module": name, "version": module.__version__, **origin, **record(module)}
        path = output / f"{name}-{module.__version__}.json"
        path.write_text(_dump(table))
        print(f"{path.name}: {len(table['classes'])} classes, {len(table['enums'])} enums")


def _dump(table: dict[str, Any]) -> str:
    """JSON with one class or enum on a line, so that versions can be compared with diff."""
    lines = []
    for key, value in table.items():
        if isinstance(value, dict):
            inner = ",\n".join(f"  {json.dumps(n)}: {json.dumps(v)}" for n, v in value.items())
            lines.append(f" {json.dumps(key)}: {{\n{inner}\n }}")
        else:
            lines.append(f" {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def main() -> None:
    """Record every source in a process of its own, because two bindings cannot live in one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheels", nargs="*")
    parser.add_argument("--installed", action="append", default=[], help="an installed module, such as tensorrt_rtx")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--single", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    sources = [*options.wheels, *options.installed]
    if options.single:
        one(sources[0], options.output)
        return
    for source in sources:
        kind = [source] if source.endswith(".whl") else ["--installed", source]
        subprocess.run([sys.executable, __file__, "--single", "-o", options.output, *kind], check=True)


if __name__ == "__main__":
    main()
