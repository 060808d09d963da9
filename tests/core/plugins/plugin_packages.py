"""Small plugin distributions, built as wheels and installed by pip into folders of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PYPROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "{name}"
version = "1.2"

[project.entry-points.matchrt]
{entry} = "{module}"

[tool.hatch.build.targets.wheel]
include = ["{module}.py"]
"""

HEAD = """
from matchrt.hooks import hookimpl
from matchrt.model import Family, GraphPass, MatcherSpec, NetworkSpec, Step, TensorSpec, Variant
MATCHRT_API_VERSION = 1

def matcher(matcher_id):
    tensor = TensorSpec(name="x", dtype="float32", axes=("batch",), meaning="anything")
    return MatcherSpec(
        id=matcher_id, title="Toy", family=Family.SPARSE, licence="MIT", paper="none",
        variants=(Variant(name="full", description="toy", weights=()),),
        networks=(NetworkSpec(name="net", inputs=(tensor,), outputs=(tensor,)),),
        steps=(Step(network="net", inputs={"x": "x"}, outputs={"x": "y"}),),
        settings=(), input_rules="none", score_meaning="none")
"""

SOURCES = {
    "healthy": HEAD + "@hookimpl\ndef register_matchers():\n    return [matcher('toy')]\n",
    "twin": HEAD + "@hookimpl\ndef register_matchers():\n    return [matcher('toy')]\n",
    "raises": "import no_such_module_anywhere\n",
    "exits": "raise SystemExit(3)\n",
    "unknown_hook": HEAD + "@hookimpl\ndef preproces(matcher):\n    return None\n",
    "unmarked": HEAD + "def preprocess(matcher, images):\n    return None\n",
    "wrong_argument": HEAD + "@hookimpl\ndef build_network(matcher, setings):\n    return None\n",
    "newer_api": "MATCHRT_API_VERSION = 99\n",
    "no_api": "from matchrt.hooks import hookimpl\n",
    "two_faults": HEAD
    + "@hookimpl\ndef parityy(matcher):\n    return None\n\n@hookimpl\ndef graph_passes(targt):\n    return []\n",
    "wrong_kind": HEAD + "@hookimpl\ndef register_matchers():\n    return ['toy']\n",
    "takes_backend": HEAD
    + "from matchrt.backends import BackendSpec\n"
    + "@hookimpl\ndef register_backends():\n    return [BackendSpec(name='onnxruntime', load='a:b', description='mine')]\n",
    "verbs": HEAD
    + "import click\n@hookimpl\ndef register_commands(cli):\n"
    + "    cli.add_command(click.Command('hello', callback=lambda: click.echo('hello from a plugin'), short_help='Say hello.'))\n",
    "taken_verb": HEAD
    + "import click\n@hookimpl\ndef register_commands(cli):\n    cli.add_command(click.Command('match', callback=print))\n",
    "marker": "import os, pathlib\npathlib.Path(os.environ['MARKER']).write_text('imported')\n" + HEAD,
    "tracer": HEAD
    + """
def stamp(model):
    model.producer_name = "stamped by tracer"
    return model

@hookimpl
def graph_passes(matcher, target):
    return [GraphPass(name="stamp", reason="shows that a plugin without a matcher reaches every matcher", run=stamp)]
""",
}


def install(kind: str, folder: Path, *, name: str | None = None, entry: str | None = None) -> Path:
    """Build the plugin called `kind` and install it; returns the folder for PYTHONPATH."""
    project, site = folder / "project", folder / "site"
    project.mkdir(parents=True)
    module = f"plugin_{name or kind}".replace("-", "_")
    distribution = name or f"toy-{kind.replace('_', '-')}"
    (project / f"{module}.py").write_text(SOURCES[kind])
    (project / "pyproject.toml").write_text(PYPROJECT.format(name=distribution, entry=entry or kind, module=module))
    build = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
    wheel = subprocess.run(
        [sys.executable, "-c", build, str(folder)], cwd=project, check=True, capture_output=True, text=True
    ).stdout.split()[-1]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", site, folder / wheel],
        check=True,
        env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
    )
    return site
