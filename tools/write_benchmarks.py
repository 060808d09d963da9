"""Tables and plots in the documents, made from receipts; and figures in prose, held to receipts.

    uv run python tools/write_benchmarks.py            write every generated block and plot again
    uv run python tools/write_benchmarks.py --check    say what is stale or has no receipt; exit code 1 if anything is

A generated block stands between `<!-- receipt: FILE.json … -->` and `<!-- end -->`; FILE lies in docs/benchmarks. After it may stand
`run=N` (of `matchrt bench`; the last by default), `sweep=AXIS`, `layers=N` (of each network, the slowest), `plot=NAME.png`, or `rows=A|B`
(of mini-matching.json).

A figure in prose (a number with ×, ms, s, px, %, MB, GiB, …) needs, in its paragraph,
    <!-- figures FILE.json: 443 s = r["convert"]["seconds"]["total"]; 1.7 GiB = … -->
whose expressions give it from the receipt `r`, to its last digit; or `<!-- figures: 2 GB = fact: protobuf's limit -->` where it was
not measured. Code is left out.
"""

from __future__ import annotations

import argparse
import ast
import json
import operator
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RECEIPTS = ROOT / "docs/benchmarks"
BLOCK = re.compile(r"(<!-- receipt: (\S+)([^>]*?) -->\n)(.*?)(<!-- end -->)", re.S)
FIGURE = re.compile(r"(?<![\w.,/x-])(\d+(?:\.\d+)?)\s?(×|ms|px|%|[KMGT]i?B|s|seconds|minutes|times)(?![\w])")
SHARED_UNIT = re.compile(
    r"(?<![\w.,/x-])(\d+(?:\.\d+)?)(?= (?:and|to|or) \d+(?:\.\d+)?\s?(×|ms|%|[KMGT]i?B|s|seconds|minutes|times)(?!\w))"
)
"""The 80 of "80 and 46 s"."""
NOTE = re.compile(r"<!-- figures(?: (\S+\.json))?:\s+(.*?)\s*-->", re.S)
HELD_BY_ITS_OWN_TEST = {"mini-matching.md"}
_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
_FUNCTIONS = {"sum": sum, "min": min, "max": max, "values": lambda mapping: list(mapping.values())}


def pages() -> list[Path]:
    """Everything that people read, pages with a test of their own excepted."""
    found = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [p for p in [*found, *sorted(ROOT.glob("plugins/*/*.md"))] if p.name not in HELD_BY_ITS_OWN_TEST]


def regenerate(text: str, page: Path, plots: bool = False) -> str:
    """`text` with every block made anew; with `plots` their pictures, too."""

    def block(match: re.Match[str]) -> str:
        options = dict(word.partition("=")[::2] for word in re.findall(r"\w+=[^=]+?(?=\s+\w+=|$)", match[3].strip()))
        return match[1] + content(match[2], options, page, plots) + match[5]

    return BLOCK.sub(block, text)


def content(name: str, options: Mapping[str, str], page: Path, plots: bool) -> str:
    """The inside of one block."""
    receipt = json.loads((RECEIPTS / name).read_text("utf-8"))
    if "rows" in options:
        return matching_table(receipt, options["rows"].split("|"))
    run = receipt["runs"][int(options.get("run", len(receipt["runs"]))) - 1]
    layers = options.get("layers")
    text = bench_tables(run, options.get("sweep"), None if layers is None else int(layers))
    if "plot" in options:
        picture = RECEIPTS / options["plot"]
        if plots:
            from matchrt.bench.plot import plot_run

            plot_run(run, picture, options.get("sweep"))
        place = Path(*[".."] * len(page.parent.relative_to(ROOT).parts), picture.relative_to(ROOT))
        if page.parent == RECEIPTS:
            place = Path(picture.name)
        text += f"\n![Times of {name}]({place.as_posix()})\n"
    return text


def matching_table(receipt: Mapping[str, Any], rows: list[str]) -> str:
    """Accuracy over all pairs of the methods named `rows`."""
    columns = {
        "repeatability": "repeatability",
        "accuracy_1px": "right at 1 px",
        "accuracy_3px": "at 3 px",
        "accuracy_5px": "at 5 px",
        "corners_3px": "corners within 3 px",
    }
    lines = ["| | " + " | ".join(columns.values()) + " |", "|---" * (len(columns) + 1) + "|"]
    for row in rows:
        figures = receipt["results"][row]["all"]
        lines.append(f"| {row} | " + " | ".join(f"{100 * figures[c]:.1f} %" for c in columns) + " |")
    return "\n".join(lines) + "\n"


def bench_tables(run: Mapping[str, Any], sweep: str | None, most_layers: int | None = None) -> str:
    """Where and how, then a table for each group with its slowest layers; with `sweep` the slopes."""
    from matchrt.bench.table import COLUMNS, Group, compare, groups, growth, layer_rows, rows, used_columns

    machine, comparison = run["machine"], compare(run)
    where = ", ".join([machine["cpu"], f"{machine['cores']} cores", *machine["gpus"]])
    parts = [f"{run['date'][:10]}, {where}, rounds {run['rounds']}: `{run['command']}`"]
    for group, members in groups(run).items():
        ours = [c for c in comparison if Group(c["bundle"], c["batch"], tuple(c["size"])) == group]
        table = list(rows(members, ours))
        used = used_columns(table)
        random = "; random weights" if members[0]["random_weights"] else ""
        lines = [f"**{group.title}** ({members[0]['matcher']}{random})", ""]
        lines += ["| " + " | ".join(COLUMNS[i] for i in used) + " |", "|---" * len(used) + "|"]
        lines += ["| " + " | ".join(row[i].replace("|", "\\|") for i in used) + " |" for row in table]
        parts.append("\n".join(lines))
        layers = list(layer_rows(members, most_layers))
        if layers:
            lines = ["| contender | network | layer | ms | share |", "|---|---|---|---|---|"]
            parts.append(
                "\n".join([*lines, *("| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in layers)])
            )
    if sweep:
        parts.append("\n".join(f"- time grows as {sweep}^{g['slope']:.2f}: {g['label']}" for g in growth(run, sweep)))
    return "\n\n".join(parts) + "\n"


def problems(text: str) -> Iterator[str]:
    """Figures without a receipt, and notes that are wrong, out of date or of no use."""
    without_code = re.sub(r"```.*?```", "", BLOCK.sub("", text), flags=re.S)
    for paragraph in re.split(r"\n\s*\n", without_code):
        notes = dict(item for match in NOTE.finditer(paragraph) for item in _items(match))
        lines = [line for line in NOTE.sub("", paragraph).splitlines() if not line.startswith("    ")]
        prose = re.sub(r"`[^`]*`", "", "\n".join(lines))
        found = {f"{number} {unit}" for number, unit in [*FIGURE.findall(prose), *SHARED_UNIT.findall(prose)]}
        yield from (f"{figure}: no receipt" for figure in sorted(found - notes.keys()))
        yield from (f"{figure}: noted, but not in the paragraph" for figure in sorted(notes.keys() - found))
        yield from (p for figure in sorted(found & notes.keys()) for p in _wrong(figure, *notes[figure]))


def _items(note: re.Match[str]) -> Iterator[tuple[str, tuple[str | None, str]]]:
    for item in note[2].split(";"):
        figure, _, proof = item.strip().partition(" = ")
        yield " ".join(figure.split()), (note[1], proof.strip())


def _wrong(figure: str, file: str | None, proof: str) -> Iterator[str]:
    if proof.startswith("fact: "):
        return
    if file is None:
        yield f"{figure}: neither a receipt nor `fact:`"
        return
    value, text = evaluate(proof, json.loads((RECEIPTS / file).read_text("utf-8"))), figure.split()[0]
    digits = len(text.partition(".")[2])
    if abs(value - float(text)) > 0.5 * 10**-digits + 1e-9:
        yield f"{figure}: {file} says {value:.6g} ({proof})"


def evaluate(expression: str, receipt: Any) -> float:
    """Arithmetic over `r["key"][index]`, with sum, min, max and values. Raises ValueError for anything else."""

    def walk(node: ast.expr) -> Any:
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.Name) and node.id == "r":
            return receipt
        if isinstance(node, ast.Subscript):
            return walk(node.value)[walk(node.slice)]
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -walk(node.operand)
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](walk(node.left), walk(node.right))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS:
            return _FUNCTIONS[node.func.id](*[walk(a) for a in node.args])
        raise ValueError(f"cannot evaluate {expression!r}")

    return float(walk(ast.parse(expression.strip(), mode="eval").body))


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check, bad = parser.parse_args().check, 0
    for page in pages():
        text = page.read_text("utf-8")
        fresh = regenerate(text, page, plots=not check)
        if not check:
            page.write_text(fresh, "utf-8")
        elif fresh != text:
            bad += 1
            print(f"{page.relative_to(ROOT)}: a table is not what its receipt gives")
        for problem in problems(fresh):
            bad += 1
            print(f"{page.relative_to(ROOT)}: {problem}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
