"""Do the float16 graphs of `mini` find the matches of the float32 ones? Rounding is emulated, so no GPU is needed.

    uv run python benchmarks/half_parity.py [--each N] [--save docs/benchmarks/mini-half.json]

Pairs: the shipped samples, and N held-out pairs of each photograph of `plugins/lightglue/training/evaluate.py`. A match is shared when
both ends agree within 0.25 pixels of the original image. `core/src/matchrt/graph/emulate.py` says what is emulated and what is not.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import onnx

import matchrt
from matchrt.backends.onnxruntime import OnnxRuntimeBackend
from matchrt.bench.receipt import now
from matchrt.export.compare import MatchDifference, compare_matches
from matchrt.graph.emulate import emulate_half
from matchrt.graph.prepare import prepare
from matchrt.model import Target
from matchrt.plugins import MatcherHooks, get_plugins
from matchrt.runtime.matcher import Matcher
from matchrt.samples import sample_pairs
from matchrt.workers.machine import machine_record

RADIUS = 0.25
INSTALLED = ("astronaut.png", "coffee.png", "chelsea.png", "brick.png", "page.png")
"""The held-out photographs that need no download."""
TRAINING = Path(__file__).parents[1] / "plugins/lightglue/training"


def half_matcher(full: Matcher, folder: Path) -> Matcher:
    """`full` with its networks in emulated float16."""
    plugins = get_plugins()
    hooks = MatcherHooks(plugins, plugins.matcher(full.manifest.matcher.id))
    target = Target(backend="tensorrt_rtx", precision="fp16")
    half = matchrt.load(full.bundle.path)
    for network in full.manifest.networks:
        model = onnx.load(full.bundle.graph(network.name))
        ready = prepare(model, target, network=network.name, rules=hooks.precision_rules(target))
        path = folder / f"{network.name}.onnx"
        onnx.save_model(emulate_half(ready.model), path)
        half._engines[network.name] = OnnxRuntimeBackend().open(network.name, path, {})
    return half


def pairs(each: int) -> list[tuple[str, Any, Any]]:
    found: list[tuple[str, Any, Any]] = [(p.name, p.image0, p.image1) for p in sample_pairs()]
    if each:
        sys.path.insert(0, str(TRAINING))
        import heldout
        import settings

        config = settings.load_config(TRAINING / "config.toml", smoke=False)
        names = [n for n in config["photographs"]["held_out"] if n.removeprefix("skimage:") in INSTALLED]
        for number, pair in enumerate(heldout.held_out_pairs(names, each, config["seed"])):
            found.append((f"{pair.photograph} {number % each}", pair.image0, pair.image1))
    return found


def summary(rows: list[MatchDifference]) -> dict[str, float]:
    matches = sum(max(r.reference, r.other) for r in rows)
    shared = sum(r.shared * max(r.reference, r.other) for r in rows)
    return {
        "pairs": len(rows),
        "matches": matches,
        "shared_within_0.25_px": shared / matches,
        "median_shared_of_a_pair": statistics.median(r.shared for r in rows),
        "mean_px": statistics.mean(r.mean_px for r in rows),
        "max_score_difference": max(r.max_score for r in rows),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--each", type=int, default=0, help="held-out pairs of each photograph; 0: none")
    parser.add_argument("--save", type=Path)
    options = parser.parse_args()
    rows: list[MatchDifference] = []
    with tempfile.TemporaryDirectory() as folder:
        full = matchrt.load("superpoint-lightglue:mini")
        half = half_matcher(full, Path(folder))
        for name, image0, image1 in pairs(options.each):
            rows.append(compare_matches(name, full(image0, image1), half(image0, image1), RADIUS))
            last = rows[-1]
            print(f"{name}: {last.reference} and {last.other} matches, {last.shared:.2%} shared", flush=True)
    figures = summary(rows)
    print(json.dumps(figures, indent=2))
    if options.save:
        command = f"uv run python benchmarks/half_parity.py --each {options.each} --save {options.save}"
        receipt = {
            "benchmark": "float16 graphs of mini, rounding emulated, against float32",
            "date": now(),
            "command": command,
            "machine": machine_record(("numpy", "torch", "onnx", "onnxruntime")),
            "figures": figures,
            "pairs": [r.to_dict() for r in rows],
        }
        options.save.write_text(json.dumps(receipt, indent=2) + "\n")


if __name__ == "__main__":
    main()
