"""Pictures from MuJoCo without a display: which OpenGL to load, and a renderer that is quick on a CPU.

MuJoCo chooses its OpenGL when it is first imported, from ``MUJOCO_GL``. So :func:`import_mujoco` is the only way that
wamkit imports it. On a CPU (Mesa's llvmpipe) the time goes into the robot's 68,000 triangles; shadows and reflections
draw all of them again and multisampling draws each pixel again, so all three are off.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import sys
import weakref
from types import ModuleType

import numpy as np

from wamkit.errors import WamkitError

_INSTALL = (
    "install a software renderer "
    "(Debian, Ubuntu: apt-get install libegl1 libgl1-mesa-dri, or: apt-get install libosmesa6)"
)


class RenderingError(WamkitError):
    """No picture can be made on this machine."""


def _egl_works() -> bool:
    """Whether some EGL device can be initialised, asked of the library itself (takes milliseconds)."""
    try:
        egl = ctypes.CDLL(ctypes.util.find_library("EGL") or "libEGL.so.1")
        address = egl.eglGetProcAddress
        address.restype = ctypes.c_void_p
        query_pointer, display_pointer = address(b"eglQueryDevicesEXT"), address(b"eglGetPlatformDisplayEXT")
        if not query_pointer or not display_pointer:
            return False
        query = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(query_pointer)
        display = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p)(display_pointer)
        devices, count = (ctypes.c_void_p * 16)(), ctypes.c_int(0)
        if not query(16, devices, ctypes.byref(count)):
            return False
        platform_device = 0x313F  # EGL_PLATFORM_DEVICE_EXT
        egl.eglInitialize.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
        for device in devices[: count.value]:
            handle = display(platform_device, device, None)
            if handle and egl.eglInitialize(handle, None, None):
                return True
    except (OSError, AttributeError):
        return False
    return False


def _osmesa_works() -> bool:
    return ctypes.util.find_library("OSMesa") is not None


def choose_backend() -> str:
    """The value of ``MUJOCO_GL``: the user's, else ``egl``, else ``osmesa``, else ``disable`` (physics only)."""
    chosen = os.environ.get("MUJOCO_GL", "").strip().lower()
    if chosen:
        return chosen
    if _egl_works():
        return "egl"
    return "osmesa" if _osmesa_works() else "disable"


def import_mujoco() -> ModuleType:
    """Import MuJoCo with an OpenGL that works here; with none, physics still runs and rendering says what to install.

    Raises:
        RenderingError: ``MUJOCO_GL`` names an OpenGL that cannot be loaded, or MuJoCo is not installed.
    """
    if "mujoco" in sys.modules:
        return sys.modules["mujoco"]
    users = os.environ.get("MUJOCO_GL")
    backend = choose_backend()
    os.environ["MUJOCO_GL"] = backend
    try:
        import mujoco
    except ModuleNotFoundError as error:
        raise RenderingError("MuJoCo is not installed: pip install 'wamkit[sim]'.") from error
    except (ImportError, AttributeError, OSError, RuntimeError) as error:
        for name in [name for name in sys.modules if name == "mujoco" or name.startswith(("mujoco.", "OpenGL"))]:
            del sys.modules[name]
        hint = f"unset MUJOCO_GL, or {_INSTALL}" if users else _INSTALL
        raise RenderingError(f"MuJoCo cannot load its OpenGL (MUJOCO_GL={backend}): {hint}.") from error
    return mujoco


def _closed(renderers: dict) -> None:
    while renderers:
        renderers.popitem()[1].close()


class Camera:
    """Draws the named cameras of one MuJoCo model, at any size.

    Renderers are made at the first picture of each size and closed explicitly: left to the interpreter's end, they
    outlive the OpenGL that they belong to and print errors.
    """

    def __init__(self, model) -> None:
        self._model = model
        self._renderers: dict[tuple[int, int], object] = {}
        self._finalizer = weakref.finalize(self, _closed, self._renderers)

    def _renderer(self, size: tuple[int, int]):
        if size in self._renderers:
            return self._renderers[size]
        mujoco = import_mujoco()
        backend = os.environ.get("MUJOCO_GL", "")
        if backend in {"disable", "disabled", "off", "false", "0"}:
            raise RenderingError(
                f"There is no OpenGL to draw with (MUJOCO_GL={backend}): unset MUJOCO_GL and {_INSTALL}."
            )
        # Read when the renderer is made, not when it draws.
        self._model.vis.quality.offsamples = 0
        self._model.vis.global_.offheight = max(self._model.vis.global_.offheight, size[0])
        self._model.vis.global_.offwidth = max(self._model.vis.global_.offwidth, size[1])
        try:
            renderer = mujoco.Renderer(self._model, height=size[0], width=size[1])
        except Exception as error:
            raise RenderingError(
                f"MuJoCo cannot make an OpenGL context (MUJOCO_GL={backend or 'unset'}): {error}; {_INSTALL}, "
                "and import wamkit's environments before mujoco."
            ) from error
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            renderer.scene.flags[flag] = 0
        self._renderers[size] = renderer
        return renderer

    def draw(self, data, camera: str, size: tuple[int, int], position: np.ndarray | None = None) -> np.ndarray:
        """One picture, uint8 [H, W, 3], as MuJoCo orients it.

        Args:
            data: The simulation's MjData, with positions computed.
            camera: A camera of the model.
            size: (height, width), drawn at this size rather than resized to it.
            position: World position [3] to draw from instead of the camera's own, with its orientation and lens.
        """
        renderer = self._renderer(size)
        if position is None:
            renderer.update_scene(data, camera=camera)
            return renderer.render()
        index = self._model.camera(camera).id
        own = data.cam_xpos[index].copy()
        data.cam_xpos[index] = position
        try:
            renderer.update_scene(data, camera=camera)
        finally:
            data.cam_xpos[index] = own
        return renderer.render()

    def close(self) -> None:
        """Free the OpenGL contexts; drawing again makes new ones."""
        _closed(self._renderers)
