"""Run the tests marked `slow`, which the usual run leaves out, and write down that and how they ran.

    uv run python tools/slow_receipt.py [PATH …] [--limit SECONDS] [--save docs/benchmarks/slow-tests-DATE.json]

Without paths all slow tests run. With paths only those run, and their outcomes are added to the receipt of the same name, so that a
long run can be split. The receipt names every slow test that there is: what was not run stands under `not_run`. Exits with 1 if
a test failed, and the receipt says which.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from datetime import date
from pathlib import Path
from typing import Any

from matchrt.bench.receipt import now
from matchrt.workers.machine import machine_record

ROOT = Path(__file__).parents[1]


def collect(paths: list[str]) -> list[str]:
    """Ids of the slow tests under `paths` (everywhere if empty)."""
    command = [sys.executable, "-m", "pytest", "-m", "slow", "--collect-only", "-q", *paths]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    ids = [line for line in done.stdout.splitlines() if "::" in line]
    if done.returncode not in (0, 5):
        raise SystemExit(f"collecting the slow tests failed:\n{done.stdout}{done.stderr}")
    return ids


def run(paths: list[str], limit: int) -> dict[str, dict[str, Any]]:
    """Outcome of each slow test under `paths`, by id; `limit` seconds each."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "junit.xml"
        command = [sys.executable, "-m", "pytest", "-m", "slow", "-q", f"--timeout={limit}", f"--junitxml={report}"]
        subprocess.run([*command, "-o", "junit_family=xunit1", *paths], cwd=ROOT, check=False)
        if not report.exists():
            raise SystemExit("pytest wrote no report: it was stopped, or a test took the process down")
        return outcomes(report)


def outcomes(report: Path) -> dict[str, dict[str, Any]]:
    """What a junit report (xunit1) says, by test id."""
    found = {}
    for case in ET.parse(report).getroot().iter("testcase"):
        parts = [case.get("file", ""), *_classes(case), case.get("name", "")]
        entry: dict[str, Any] = {"outcome": "passed", "seconds": round(float(case.get("time", 0)), 2)}
        for kind, word in (("failure", "failed"), ("error", "error"), ("skipped", "skipped")):
            reason = case.find(kind)
            if reason is not None:
                entry |= {"outcome": word, "why": (reason.get("message") or "").splitlines()[:1]}
        found["::".join(parts)] = entry
    return found


def _classes(case: ET.Element) -> list[str]:
    module = case.get("file", "").removesuffix(".py").replace("/", ".")
    rest = case.get("classname", "").removeprefix(module).strip(".")
    return rest.split(".") if rest else []


def commit() -> str:
    """The commit that ran; "+" after it means that files differed."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no")
    return git("rev-parse", "HEAD") + ("+" if changed else "")


def main() -> int:
    """Run, merge, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", help="files or folders of tests; all if left out")
    parser.add_argument("--limit", type=int, default=900, help="seconds a test may take")
    parser.add_argument("--save", type=Path, default=ROOT / f"docs/benchmarks/slow-tests-{date.today()}.json")
    chosen = parser.parse_args()
    every = collect([])
    before = json.loads(chosen.save.read_text("utf-8"))["tests"] if chosen.paths and chosen.save.exists() else {}
    at = commit()
    fresh = {name: {**entry, "commit": at, "date": now()} for name, entry in run(chosen.paths, chosen.limit).items()}
    tests = {name: entry for name, entry in (before | fresh).items() if name in every}
    counts = {
        word: sum(e["outcome"] == word for e in tests.values()) for word in ("passed", "failed", "error", "skipped")
    }
    receipt = {
        "what": "the tests marked slow",
        "command": "uv run python tools/slow_receipt.py",
        "date": now(),
        "machine": machine_record(("numpy", "torch", "onnx", "onnxruntime")),
        "limit_s": chosen.limit,
        "counts": counts,
        "seconds": round(sum(e["seconds"] for e in tests.values()), 1),
        "not_run": [name for name in every if name not in tests],
        "tests": {name: tests[name] for name in every if name in tests},
    }
    chosen.save.write_text(json.dumps(receipt, indent=1) + "\n", "utf-8")
    print(f"{chosen.save}: {counts}, not run: {len(receipt['not_run'])}")
    return 1 if counts["failed"] or counts["error"] or not fresh else 0


if __name__ == "__main__":
    sys.exit(main())
