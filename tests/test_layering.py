"""Data flows down the list of the design, and an import points only up it."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib


def test_imports_keep_the_layers(repository):
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from importlinter.cli import lint_imports_command; lint_imports_command()",
            "--no-cache",
        ],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_contract_lists_every_part(repository):
    contracts = tomllib.loads((repository / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = {layer.strip("()") for layer in next(c for c in contracts if c["type"] == "layers")["layers"]}
    source = repository / "src" / "wamkit"
    parts = {path.stem for path in source.glob("*.py")} | {path.parent.name for path in source.glob("*/__init__.py")}
    assert parts - {"__init__", "__main__"} <= layers


def test_no_file_is_a_drawer(repository):
    for path in (repository / "src").rglob("*.py"):
        assert path.stem not in {"utils", "common", "misc", "helpers"}, path
        assert len(path.read_text().splitlines()) <= 500, f"{path}: take a hard look, it is longer than 500 lines"


def test_every_module_has_a_docstring(repository):
    for path in (repository / "src").rglob("*.py"):
        assert ast.get_docstring(ast.parse(path.read_text())), f"{path} does not say what it is"
