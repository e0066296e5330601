"""The package as a newcomer meets it: versions agree, imports are light, files hold no address."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib

import pytest

import wamkit

# A finder that refuses what a model must not need; it runs before anything of wamkit is imported.
BLOCKER = """
import sys
class Refuse:
    blocked = {"lerobot", "metaworld", "mujoco", "gymnasium", "matplotlib", "datasets", "av"}
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.blocked:
            raise ModuleNotFoundError(f"refused: {name}", name=name)
sys.meta_path.insert(0, Refuse())
"""


def test_the_version_is_the_same_everywhere(repository):
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    assert wamkit.__version__ == project["version"]
    assert project["license"] == "Apache-2.0"
    assert "Apache License" in (repository / "LICENSE").read_text()[:200]


def test_importing_wamkit_imports_no_torch():
    code = "import sys, wamkit; assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_an_unknown_attribute_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        wamkit.lod  # noqa: B018


def test_models_import_without_lerobot_simulator_or_gpu_and_quickly():
    code = (
        BLOCKER + "import time, torch\nbefore = time.process_time()\n"
        "import wamkit.models.registry as registry\n"
        "for name in registry.model_names(): __import__(f'wamkit.models.{name}')\n"
        "print(time.process_time() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={"PATH": "/usr/bin:/bin", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 4.0, "the issue allows 4 s beyond torch itself"


def test_constraints_are_exact_and_hold_no_address(repository):
    lines = [line for line in (repository / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert len(lines) > 100
    for line in lines:
        assert re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.+!]+", line), line


def test_every_dependency_is_pinned(repository):
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    pins = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (repository / "constraints.txt").read_text().splitlines()
    }
    wanted = list(project["dependencies"])
    for extra in project["optional-dependencies"].values():
        wanted += extra
    names = {re.match(r"[A-Za-z0-9_.-]+", entry)[0].lower().replace("_", "-") for entry in wanted}
    assert names <= pins, names - pins


def test_makefile_targets(repository):
    text = (repository / "Makefile").read_text()
    for target in ("help", "install", "demo", "test", "check", "docs", "clean"):
        assert re.search(rf"^{target}:.* ## ", text, flags=re.MULTILINE), target
    listed = subprocess.run(["make", "-C", str(repository), "help"], capture_output=True, text=True, check=True).stdout
    assert "make demo" in listed
    assert "make test" in listed


def test_a_missing_python_is_named(repository, tmp_path):
    found = subprocess.run(
        ["/bin/sh", str(repository / "scripts/find_python.sh")],
        env={"PATH": str(tmp_path), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 1
    assert "no Python 3.12 found" in found.stderr
    assert "PYTHON=" in found.stderr


def test_this_python_is_found(repository, tmp_path):
    found = subprocess.run(
        ["/bin/sh", str(repository / "scripts/find_python.sh")],
        env={"PATH": str(tmp_path), "HOME": str(tmp_path), "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip()
