"""From the answers of `benchmarks/gpu_evidence.py` to receipts: `python tools/gather_evidence.py OUT NAME [--to docs/benchmarks]`.

Writes NAME-SUBJECT.json with every race of a subject, NAME-verify.json, NAME-builds.json, and what `gpu_runtime.py` and
`gpu_torch_arrays.py` wrote. Nothing is computed: paths of the machine are left out, the rest is as the tools wrote it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

KINDS = ("own", "eager", "default", "reduce-overhead", "max-autotune")
LEFT_OUT = ("bundle", "report", "interpreter", "checkpoint", "path")
"""Keys whose values are paths of the machine."""


def races(out: Path) -> dict[str, dict[str, Any]]:
    """Receipts by subject, runs in the order of `KINDS`."""
    found: dict[str, dict[str, Any]] = {}
    for kind in KINDS:
        for path in sorted(out.glob(f"bench-*-{kind}.json")):
            subject = path.stem.removeprefix("bench-").removesuffix(f"-{kind}")
            receipt = json.loads(path.read_text())
            found.setdefault(subject, {"schema": receipt["schema"], "runs": []})["runs"] += receipt["runs"]
    return found


def verified(out: Path) -> dict[str, Any]:
    """Every answer of verify, by subject and precision."""
    answers = {}
    for path in sorted(out.glob("verify-*.out")):
        text = path.read_text()
        if text.strip():
            answers[path.stem.removeprefix("verify-")] = {"date": _date(path), **_cleaned(json.loads(text))}
    return {
        "what": "engines against the PyTorch network of the same checkpoint, on the shipped pairs",
        "command": "matchrt verify BUNDLE --backend tensorrt --precision fp16|fp32 --no-locate --json, by benchmarks/gpu_evidence.py",
        "results": answers,
    }


def builds(out: Path) -> dict[str, Any]:
    """Every engine that was built, by subject."""
    made: dict[str, list[Any]] = defaultdict(list)
    for path in sorted(out.glob("build-*.out")):
        text = path.read_text()
        for built in json.loads(text)["built"] if text.strip() else ():
            subject = path.stem.removeprefix("build-").removesuffix(f"-{built['network']}")
            made[subject].append({k: v for k, v in built.items() if k != "spec"} | {"gpu": built["spec"]["gpu"]})
    return {
        "what": "engines built, several at a time on each GPU, so that seconds say little",
        "command": "matchrt build BUNDLE --backend tensorrt --option tactic_sources=none --network …, by benchmarks/gpu_evidence.py",
        "builder": "TensorRT 8.6.0",
        "engines": made,
    }


def _date(path: Path) -> str:
    return datetime.fromtimestamp(path.stat().st_mtime, timezone.utc).isoformat(timespec="seconds")


def _cleaned(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _cleaned(v) for k, v in value.items() if not (k in LEFT_OUT and isinstance(v, str))}
    if isinstance(value, list):
        return [_cleaned(v) for v in value]
    return value


def main() -> int:
    """Write the receipts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("name")
    parser.add_argument("--to", type=Path, default=Path("docs/benchmarks"))
    args = parser.parse_args()
    receipts: dict[str, Any] = {**races(args.out), "verify": verified(args.out), "builds": builds(args.out)}
    for path in (*sorted(args.out.glob("runtime-*.json")), *sorted(args.out.glob("torch-arrays.json"))):
        receipts[path.stem] = json.loads(path.read_text())
    for name, receipt in receipts.items():
        target = args.to / f"{args.name}-{name}.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(receipt, indent=1) + "\n")
        print(target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
