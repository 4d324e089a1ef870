"""The wings stay wings: imports run downwards only, and a release's fingerprint covers all that decides it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from build_scripts.core.paths import OURS, PROJECT
from build_scripts.releases.fingerprint import ingredient_modules

# The lowest first: a file may import from the rooms before its own, and from its own.
ROOMS = (
    *("core", "graph", "convert", "releases"),
    *("serving.start", "serving.keep", "serving.client", "quality", "serving.swap", "serving"),
    *("benchmarks", "__main__"),
)


def imported(file: Path) -> set[str]:
    """The modules of this project that a file imports anywhere, by their dotted names without "build_scripts"."""
    names = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import hides its room"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return {name.removeprefix("build_scripts.") for name in names if name.startswith("build_scripts.")}


def room_of(name: str) -> int:
    """The place of the room that holds a module, by its longest name in ROOMS."""
    return ROOMS.index(max((room for room in ROOMS if f"{name}.".startswith(f"{room}.")), key=len))


@pytest.mark.parametrize("file", sorted(OURS.rglob("*.py")), ids=lambda file: str(file.relative_to(OURS)))
def test_imports_run_downwards_only(file):
    own = file.relative_to(OURS).with_suffix("").as_posix().replace("/", ".")
    if own != "__init__":
        upward = [name for name in imported(file) if room_of(name) > room_of(own)]
        assert not upward, f"{own} imports {', '.join(upward)}"


def loaded_by(statement: str) -> set[str]:
    """The files of this project that a fresh interpreter has loaded after a statement."""
    code = (
        f"import sys\n{statement}\n"
        "print(*(m.__file__ for n, m in sys.modules.items() if n.startswith('build_scripts.')), sep='\\n')"
    )
    output = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    return {str(Path(line).relative_to(OURS)) for line in output.stdout.splitlines()}


def test_the_graph_loads_nothing_of_other_rooms():
    modules = [file.stem for file in (OURS / "graph").glob("[!_]*.py")]
    imports = ", ".join(f"build_scripts.graph.{module}" for module in modules)
    loaded = loaded_by(f"import {imports}; assert 'transformers' not in sys.modules")
    assert loaded == {"graph/__init__.py", *(f"graph/{module}.py" for module in modules)}


@pytest.mark.slow
def test_the_fingerprint_covers_everything_that_a_build_imports():
    found = loaded_by("from build_scripts.convert import checkpoint, verified_file")
    files = {name for name in found if not name.endswith("__init__.py")}
    covered = {str(path.relative_to(OURS)) for path in ingredient_modules()}
    assert "graph/packed_encoder.py" in files
    assert files <= covered, files - covered
