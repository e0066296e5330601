"""Is this installation whole? Versions, the accelerator, rendering libraries, FFmpeg: each finding says how to mend it.

``python -m wamkit.diagnostics --rendering`` is what ``make install`` ends with; ``wam info`` prints all of it.
"""

from __future__ import annotations

import ctypes.util
import functools
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from wamkit.integrations.lerobot import PLUG_IN, SUPPORTED_VERSIONS

PACKAGES = ("torch", "lerobot", "transformers", "accelerate", "diffusers", "av", "metaworld", "mujoco", "libero")
"""Import names whose versions decide what runs here; the last three belong to extras."""

RENDERING_SYSTEM_PACKAGES = ("libegl1", "libgl1", "libosmesa6")
"""Debian and Ubuntu names of what MuJoCo draws with where there is no screen."""

_RENDER_PROBE = """
import mujoco
model = mujoco.MjModel.from_xml_string(
    "<mujoco><worldbody><light pos='0 0 3'/><geom type='sphere' size='.3'/></worldbody></mujoco>")
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
renderer = mujoco.Renderer(model, 32, 32)
renderer.update_scene(data)
assert renderer.render().max() > 0
renderer.close()
"""


@dataclass(frozen=True)
class Finding:
    """One thing looked at: what it is, what was found, and how to mend it where it is not as it should be."""

    subject: str
    found: str
    remedy: str = ""

    @property
    def ok(self) -> bool:
        """Whether nothing needs mending."""
        return not self.remedy


def diagnose() -> tuple[Finding, ...]:
    """Everything worth knowing about this installation, most basic first."""
    packages = (_package(name) for name in PACKAGES)
    return (_python(), *packages, _lerobot_plug_in(), _accelerator(), _rendering(), _disk())


@functools.cache
def rendering_backend() -> str | None:
    """The first of EGL and OSMesa that draws a picture with MuJoCo in a process of its own; None where none does.

    ``MUJOCO_GL`` is respected where it is set.
    """
    asked = os.environ.get("MUJOCO_GL")
    for backend in (asked,) if asked else ("egl", "osmesa"):
        probe = subprocess.run(
            [sys.executable, "-c", _RENDER_PROBE],
            env=os.environ | {"MUJOCO_GL": backend, "PYOPENGL_PLATFORM": backend},
            capture_output=True,
            timeout=60,
            check=False,
        )
        if probe.returncode == 0:
            return backend
    return None


def rendering_problem() -> str | None:
    """Why MuJoCo cannot draw here and what to install; None where it can."""
    if importlib.util.find_spec("mujoco") is None:
        return "mujoco is not installed: pip install 'wamkit[sim]'"
    if rendering_backend() is not None:
        return None
    install = f"apt-get update && apt-get install -y {' '.join(RENDERING_SYSTEM_PACKAGES)}"
    missing = [name for name in ("EGL", "OSMesa") if ctypes.util.find_library(name) is None]
    if asked := os.environ.get("MUJOCO_GL"):
        return f"MuJoCo cannot draw with MUJOCO_GL={asked}; unset it, or install what it needs: {install}"
    if len(missing) == 2:
        return f"MuJoCo cannot draw: neither EGL nor OSMesa is on this system. As root: {install}"
    return (
        f"MuJoCo cannot draw, although {'OSMesa' if 'EGL' in missing else 'EGL'} is on this system. As root: {install}"
    )


def _python() -> Finding:
    found = f"{platform.python_version()} ({sys.prefix})"
    remedy = "" if sys.version_info >= (3, 12) else "wamkit needs Python 3.12: run `make install` in a checkout"
    return Finding("python", found, remedy)


def _package(name: str) -> Finding:
    distribution = {"libero": "hf-libero"}.get(name, name)
    extra = {"metaworld": "sim", "mujoco": "sim", "libero": "libero"}.get(name)
    try:
        return Finding(name, importlib.metadata.version(distribution))
    except importlib.metadata.PackageNotFoundError:
        if extra:
            return Finding(name, f"not installed (extra `{extra}`)")
        return Finding(name, "not installed", f"pip install {distribution}, or run `make install` again")


def _lerobot_plug_in() -> Finding:
    subject, supported = "lerobot plug-in", ", ".join(SUPPORTED_VERSIONS)
    try:
        found = f"{PLUG_IN} {importlib.metadata.version(PLUG_IN)}, for lerobot {supported}"
    except importlib.metadata.PackageNotFoundError:
        return Finding(subject, f"not installed; for lerobot {supported}: pip install ./integrations/{PLUG_IN}")
    try:
        installed = importlib.metadata.version("lerobot")
    except importlib.metadata.PackageNotFoundError:
        return Finding(subject, found, f"pip install lerobot=={SUPPORTED_VERSIONS[-1]}")
    if installed in SUPPORTED_VERSIONS:
        return Finding(subject, found)
    remedy = f"lerobot {installed} is untested with it: pip install lerobot=={SUPPORTED_VERSIONS[-1]}"
    return Finding(subject, found, remedy)


def _accelerator() -> Finding:
    if importlib.util.find_spec("torch") is None:
        return Finding("accelerator", "unknown without torch")
    import torch

    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
        return Finding("accelerator", f"CUDA {torch.version.cuda}: {names}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Finding("accelerator", f"none; {cores} CPU cores, {torch.get_num_threads()} torch threads")


def _rendering() -> Finding:
    if importlib.util.find_spec("mujoco") is None:
        return Finding("rendering", "not needed without the extra `sim`")
    problem = rendering_problem()
    return Finding("rendering", "cannot draw", problem) if problem else Finding("rendering", str(rendering_backend()))


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    remedy = "" if free >= 2 else "free at least 2 GiB here, or give --output_dir on another disk"
    return Finding("disk", f"{free:.0f} GiB free in the working folder", remedy)


def main() -> int:
    """Prints what needs mending; with ``--rendering`` only looks at what simulators draw with."""
    findings = (_rendering(),) if "--rendering" in sys.argv[1:] else diagnose()
    for finding in findings:
        if not finding.ok:
            print(f"wamkit: {finding.subject}: {finding.remedy}", file=sys.stderr)
    return int(not all(finding.ok for finding in findings))


if __name__ == "__main__":
    sys.exit(main())
