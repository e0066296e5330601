"""What every simulator process does first: it never outlives its parent and leaves Ctrl-C to it."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading


def prepare_worker() -> None:
    """Make this process a good simulator worker; call it before MuJoCo is imported.

    A killed parent would leave its workers waiting for ever, because they hold both ends of their queues; a thread
    that watches the parent ends them.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # One rasteriser a process: several processes draw at once. The pictures do not depend on it.
    os.environ.setdefault("LP_NUM_THREADS", "1")
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)
