"""Random numbers that depend on where the run stands, not on how it got there.

Every training step seeds all generators from (run seed, stage, step, micro-batch, rank). A resumed run
therefore draws what the uninterrupted one would have drawn, without replaying any history.
"""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from the position that ``parts`` name; equal parts give equal seeds everywhere."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_everything(seed: int, device: torch.device) -> None:
    """Seed Python's, NumPy's and torch's global generators (CPU, and ``device`` if it is a GPU).

    `torch.manual_seed` does the same for every device, but formats a stack trace at each call while CUDA is
    not initialised; a training step cannot afford that.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (the global generator is what foreign code draws from)
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


class StepRandomness:
    """Seeds the global generators and one generator for the losses' own noise, step by step."""

    def __init__(self, seed: int, stage: str, rank: int, device: torch.device) -> None:
        self._place = (seed, stage, rank)
        self._device = device
        self._generator = torch.Generator(device)

    def at(self, step: int, micro_batch: int = 0) -> torch.Generator:
        """The generator for this step's noise; the global generators are seeded alike (dropout draws from them).

        Args:
            step: Optimiser step within the stage, from 0.
            micro_batch: Which of the step's accumulated batches, from 0.
        """
        seed = derive_seed(*self._place, step, micro_batch)
        seed_everything(seed, self._device)
        return self._generator.manual_seed(seed ^ 0x5DEECE66D)


def rng_state() -> dict[str, torch.Tensor]:
    """The states of all global generators as flat tensors, under LeRobot's names."""
    version, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002
    state = {
        "py_rng_version": torch.tensor([version], dtype=torch.int64),
        "py_rng_state": torch.tensor(words, dtype=torch.int64),
        "py_rng_gauss": torch.tensor([float("nan") if gauss is None else gauss], dtype=torch.float64),
        "np_rng_state_values": torch.tensor(np.asarray(keys, np.int64)),
        "np_rng_state_index": torch.tensor([position], dtype=torch.int64),
        "np_rng_has_gauss": torch.tensor([has_gauss], dtype=torch.int64),
        "np_rng_cached_gaussian": torch.tensor([cached], dtype=torch.float64),
        "torch_rng_state": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["torch_cuda_rng_state"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, torch.Tensor]) -> None:
    """Restore what `rng_state` returned."""
    gauss = float(state["py_rng_gauss"].item())
    random.setstate(
        (
            int(state["py_rng_version"].item()),
            tuple(state["py_rng_state"].tolist()),
            None if gauss != gauss else gauss,
        )
    )
    np.random.set_state(  # noqa: NPY002
        (
            "MT19937",
            state["np_rng_state_values"].numpy().astype(np.uint32),
            int(state["np_rng_state_index"].item()),
            int(state["np_rng_has_gauss"].item()),
            float(state["np_rng_cached_gaussian"].item()),
        )
    )
    torch.set_rng_state(state["torch_rng_state"])
    if "torch_cuda_rng_state" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["torch_cuda_rng_state"])
