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
from typing import ClassVar

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
        # Other libraries choose their contexts by it at any time, and without a display must not try a window's.
        os.environ.setdefault("MUJOCO_GL", choose_backend())
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


class _Context:
    """An OpenGL context with the meshes and textures of a model and an off-screen buffer that grows.

    Making one takes a third of a second and 100 MB, so the environments of a process share it where their models have
    the same assets; a scene names meshes and textures by number only.
    """

    shared: ClassVar[dict[str, _Context]] = {}

    def __init__(self, model, size: tuple[int, int], plain: bool) -> None:
        mujoco = self._mujoco = import_mujoco()
        backend = choose_backend()
        if backend in _DISABLED:
            raise RenderingError(
                f"There is no OpenGL to draw with (MUJOCO_GL={backend}): unset MUJOCO_GL and {_INSTALL}."
            )
        self._buffer = size
        # These are read when the context is made, not when it draws.
        samples = model.vis.quality.offsamples
        if plain:
            model.vis.quality.offsamples = 0
        model.vis.global_.offheight, model.vis.global_.offwidth = size
        try:
            self._gl = importlib.import_module(f"mujoco.{backend}").GLContext(size[1], size[0])
            self._gl.make_current()
            self._assets = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
        except Exception as error:  # PyOpenGL, ctypes and MuJoCo each raise their own kinds
            raise RenderingError(
                f"OpenGL makes no context (MUJOCO_GL={backend}: {error}): unset MUJOCO_GL, and {_INSTALL}."
            ) from error
        model.vis.quality.offsamples = samples
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._assets)
        self.users = 0
        # Registered after MuJoCo's own hook, which takes EGL down at the interpreter's end, and so run before it.
        atexit.register(self.close)

    def draw(self, scene, size: tuple[int, int]) -> np.ndarray:
        """The scene as uint8 [H, W, 3]; OpenGL's first row is the lowest."""
        self._gl.make_current()
        if size[0] > self._buffer[0] or size[1] > self._buffer[1]:
            self._buffer = max(size[0], self._buffer[0]), max(size[1], self._buffer[1])
            self._mujoco.mjr_resizeOffscreen(self._buffer[1], self._buffer[0], self._assets)
        pixels, rectangle = np.empty((*size, 3), np.uint8), self._mujoco.MjrRect(0, 0, size[1], size[0])
        self._mujoco.mjr_render(rectangle, scene, self._assets)
        self._mujoco.mjr_readPixels(pixels, None, rectangle, self._assets)
        return pixels

    def close(self) -> None:
        # Assets are freed in the current context: it must be theirs.
        self._gl.make_current()
        self._assets.free()
        self._gl.free()
        atexit.unregister(self.close)

    @classmethod
    def borrow(cls, key: str, model, size: tuple[int, int], plain: bool) -> _Context:
        if key not in cls.shared:
            cls.shared[key] = cls(model, size, plain)
        cls.shared[key].users += 1
        return cls.shared[key]

    @classmethod
    def give_back(cls, key: str) -> None:
        cls.shared[key].users -= 1
        if cls.shared[key].users == 0:
            cls.shared.pop(key).close()


class Camera:
    """Draws the named cameras of one MuJoCo model, at any size.

    OpenGL is touched at the first picture only.

    Args:
        model: The MjModel; its off-screen quality settings are changed.
        assets: Names the model's meshes and textures, such as the file that it was read from: models of the same
            name share them in memory.
        hidden_groups: Groups of shapes that are not drawn.
        plain: Without shadows, reflections and multisampling, which take most of the time on a CPU. False draws as
            the model's file says, for simulators whose published pictures have them.
    """

    def __init__(self, model, assets: str, *, hidden_groups: tuple[int, ...] = (), plain: bool = True) -> None:
        self._model, self._assets = model, assets
        self._hidden, self._plain = hidden_groups, plain
        self._context: _Context | None = None
        self._finalizer: weakref.finalize | None = None

    def _open(self, size: tuple[int, int]) -> _Context:
        mujoco = import_mujoco()
        self._context = _Context.borrow(self._assets, self._model, size, self._plain)
        self._finalizer = weakref.finalize(self, _Context.give_back, self._assets)
        self._finalizer.atexit = False  # the context's own hook is in the right order
        self._scene = mujoco.MjvScene(self._model, maxgeom=max(1000, 2 * self._model.ngeom))
        if self._plain:
            for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
                self._scene.flags[flag] = 0
        self._option, self._view = mujoco.MjvOption(), mujoco.MjvCamera()
        for group in self._hidden:
            self._option.geomgroup[group] = 0
        self._view.type = mujoco.mjtCamera.mjCAMERA_FIXED
        return self._context

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
        context = self._context or self._open(size)
        index = self._model.camera(camera).id
        self._view.fixedcamid = index
        own = data.cam_xpos[index].copy()
        if position is not None:
            data.cam_xpos[index] = position
        mujoco.mjv_updateScene(
            self._model, data, self._option, None, self._view, mujoco.mjtCatBit.mjCAT_ALL.value, self._scene
        )
        data.cam_xpos[index] = own
        pixels = context.draw(self._scene, size)
        return np.ascontiguousarray(pixels[:, ::-1] if hangs else pixels[::-1])

    def close(self) -> None:
        """Give the OpenGL context back; drawing again opens one."""
        if self._finalizer is not None:
            self._finalizer()
        self._context = self._finalizer = None
