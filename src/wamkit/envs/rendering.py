"""Pictures from MuJoCo without a display: which OpenGL to load, and a renderer that is quick on a CPU.

MuJoCo chooses its OpenGL when it is first imported, from ``MUJOCO_GL``, and without that variable asks for a display.
So :func:`import_mujoco` is the only way that wamkit imports it, and contexts are made here rather than by
``mujoco.Renderer``, which would inherit the choice of whoever imported MuJoCo first. On a CPU (Mesa's llvmpipe) the
time goes into the robot's 68,000 triangles; shadows and reflections draw all of them again and multisampling draws each
pixel again, so all three are off.
"""

from __future__ import annotations

import atexit
import ctypes
import ctypes.util
import functools
import importlib
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


@functools.cache
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


_DISABLED = frozenset({"disable", "disabled", "off", "false", "0"})


class _Canvas:
    """An OpenGL context, a buffer of one size and a scene, freed in the order that OpenGL needs."""

    def __init__(self, model, size: tuple[int, int]) -> None:
        mujoco = self._mujoco = import_mujoco()
        backend = choose_backend()
        if backend in _DISABLED:
            raise RenderingError(
                f"There is no OpenGL to draw with (MUJOCO_GL={backend}): unset MUJOCO_GL and {_INSTALL}."
            )
        height, width = size
        # Both are read when the context is made, not when it draws.
        model.vis.quality.offsamples = 0
        model.vis.global_.offheight, model.vis.global_.offwidth = height, width
        try:
            self._gl = importlib.import_module(f"mujoco.{backend}").GLContext(width, height)
            self._gl.make_current()
            self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
        except Exception as error:  # PyOpenGL, ctypes and MuJoCo each raise their own kinds
            raise RenderingError(
                f"OpenGL makes no context (MUJOCO_GL={backend}: {error}): unset MUJOCO_GL, and {_INSTALL}."
            ) from error
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._context)
        self.scene = mujoco.MjvScene(model, maxgeom=max(1000, 2 * model.ngeom))
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self.scene.flags[flag] = 0
        self._rect = mujoco.MjrRect(0, 0, width, height)
        self._size = size

    def draw(self) -> np.ndarray:
        """The scene as uint8 [H, W, 3]; OpenGL's first row is the lowest."""
        self._gl.make_current()
        pixels = np.empty((*self._size, 3), np.uint8)
        self._mujoco.mjr_render(self._rect, self.scene, self._context)
        self._mujoco.mjr_readPixels(pixels, None, self._rect, self._context)
        return pixels

    def close(self) -> None:
        self._gl.make_current()
        self._context.free()
        self._gl.free()


def _close_all(canvases: dict[tuple[int, int], _Canvas]) -> None:
    while canvases:
        canvases.popitem()[1].close()


class Camera:
    """Draws the named cameras of one MuJoCo model, at any size.

    Contexts are made at the first picture of each size and freed explicitly, at the latest before the interpreter
    takes OpenGL down.

    Args:
        model: The MjModel; its off-screen quality settings are changed.
    """

    def __init__(self, model) -> None:
        self._model = model
        self._canvases: dict[tuple[int, int], _Canvas] = {}
        self._finalizer = weakref.finalize(self, _close_all, self._canvases)
        self._finalizer.atexit = False
        self._option = self._view = None

    def draw(
        self,
        data,
        camera: str,
        size: tuple[int, int],
        *,
        position: np.ndarray | None = None,
        hangs: bool = False,
    ) -> np.ndarray:
        """One picture, uint8 [H, W, 3], first row on top.

        Args:
            data: The simulation's MjData, with positions computed.
            camera: A camera of the model.
            size: (height, width), drawn at this size rather than resized to it.
            position: World position [3] to draw from instead of the camera's own, with its orientation and lens.
            hangs: The camera hangs upside down: turn its picture by 180 degrees.

        Raises:
            RenderingError: There is no OpenGL on this machine; says what to install.
        """
        mujoco = import_mujoco()
        if size not in self._canvases:
            self._canvases[size] = _Canvas(self._model, size)
            # After MuJoCo's own hook, which takes EGL down, and therefore run before it.
            atexit.unregister(self._finalizer)
            atexit.register(self._finalizer)
        canvas = self._canvases[size]
        if self._option is None:
            self._option, self._view = mujoco.MjvOption(), mujoco.MjvCamera()
            self._view.type = mujoco.mjtCamera.mjCAMERA_FIXED
        index = self._model.camera(camera).id
        self._view.fixedcamid = index
        own = data.cam_xpos[index].copy()
        if position is not None:
            data.cam_xpos[index] = position
        mujoco.mjv_updateScene(
            self._model, data, self._option, None, self._view, mujoco.mjtCatBit.mjCAT_ALL.value, canvas.scene
        )
        data.cam_xpos[index] = own
        pixels = canvas.draw()
        return np.ascontiguousarray(pixels[:, ::-1] if hangs else pixels[::-1])

    def close(self) -> None:
        """Free the OpenGL contexts; drawing again makes new ones."""
        atexit.unregister(self._finalizer)
        _close_all(self._canvases)
