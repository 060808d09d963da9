"""How long the command line takes to start: `uv run python benchmarks/start_up.py --save docs/benchmarks/start_up.json`."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from matchrt.bench.receipt import now
from matchrt.workers.machine import machine_record

COMMANDS = {
    "matchrt --help": ["-m", "matchrt", "--help"],
    "matchrt models": ["-m", "matchrt", "models"],
    "matchrt plugins": ["-m", "matchrt", "plugins"],
    "import matchrt": ["-c", "import matchrt"],
    "python alone": ["-c", "pass"],
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--save", type=Path)
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(options.rounds + 1):
        for name, arguments in COMMANDS.items():
            begin = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
            seconds[name].append(time.perf_counter() - begin)
    rows = {
        name: {"median": statistics.median(times[1:]), "min": min(times[1:]), "max": max(times[1:])}
        for name, times in seconds.items()
    }
    for name, row in rows.items():
        print(f"{name:<18} median {row['median']:.3f} s  (min {row['min']:.3f}, max {row['max']:.3f})")
    if options.save:
        command = f"uv run python benchmarks/start_up.py --save {options.save}"
        data = {
            "benchmark": "start-up",
            "date": now(),
            "command": command,
            "machine": machine_record(("numpy", "torch", "onnx", "onnxruntime")),
            "seconds": rows,
        }
        options.save.write_text(json.dumps(data, indent=2) + "\n")


if __name__ == "__main__":
    main()
