"""The causal models' `act` in phases, in both of their modes.

What was seen and done since the last chunk becomes keys and values before the prefix, since how much of it there is
differs from call to call and from episode to episode. The prefix reads the instruction, imagines the chunk's frames
where the mode asks for them, and leaves the denoise steps nothing of the history to project.

The history grows up to the model's window. It is padded to the room of a few numbers of latent frames (`rooms`), what
is empty masked, so an episode comes through few shapes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from wamkit.dynamics.causal_cache import Batch, Row, Stacked, by_copy, by_episode, packed, unpacked
from wamkit.dynamics.causal_transformer import Words
from wamkit.dynamics.wan_block import TimeCode
from wamkit.models.action_groups import flattened, grouped
from wamkit.models.causal.acting import CausalActing
from wamkit.models.causal.episode import Episode
from wamkit.models.causal.sampler import ChunkSampler, Groups, action_levels, action_velocity
from wamkit.models.phases import ActPhases, Phase, State
from wamkit.types import ActionChunk, Observation

INSTRUCTIONS = 64
"""Batches of instructions whose features are kept on the device."""


def rooms(window: int) -> tuple[int, ...]:
    """Numbers of latent frames that histories are padded to: the window, a quarter of it, and so on down to one.

    An episode soon fills the window and stays there, so padding costs its first chunks alone, and none of them more
    than every later one.
    """
    sizes = [window]
    while sizes[-1] > 1:
        sizes.append(-(-sizes[-1] // 4))
    return tuple(reversed(sizes))


class CausalActPhases(ActPhases):
    """See `wamkit.models.phases.ActPhases`; every function of the model that is called here is one that `act` calls."""

    def __init__(self, model: CausalActing) -> None:
        self.model, self.config = model, model.config
        self.copies = 2 if model.config.guided else 1
        self._moved: list[Episode] = []
        self._known: OrderedDict[tuple[str, ...], Tensor] = OrderedDict()
        self._noise: dict[tuple[int, torch.device], Tensor] = {}

    @property
    def steps(self) -> int:
        """The actions' Euler steps."""
        return self.config.action_steps

    # What was seen and done

    def inputs(self, observation: Observation, text_tokens: tuple[int, ...] = ()) -> dict[str, Tensor]:
        """Each episode's history up to what is seen now, the words' features, rates, and the frames' noise."""
        steps = self.model.steps_of(observation.rate_hz)
        with torch.no_grad(), self.caller.precision():
            self._moved = self.model.moved_on(observation, steps, self._observed)
        present = torch.stack([episode.latent for episode in self._moved])
        return self._given([episode.rows for episode in self._moved], present, observation, steps)

    def settle(self) -> None:
        """The episodes have come to where `inputs` brought them."""
        self.model.recall(self._moved)

    def rehearsal(self, observation: Observation, text_tokens: tuple[int, ...] = ()) -> Iterator[dict[str, Tensor]]:
        """Every room of the history, and every number of latent frames that pass while one chunk is executed."""
        model, config = self.model, self.config
        steps, count, device = model.steps_of(observation.rate_hz), observation.batch_size, observation.rate_hz.device
        seen = torch.zeros(count, config.video.channels, config.chunk_frames, *model.latent_size, device=device)
        done = torch.zeros(count, config.max_actions, config.action.action_dim, device=device)
        with torch.no_grad():
            pasts = self._observed([model.empty_rows()] * count, seen[:, :, :1], None, observation.task)
        for room in rooms(config.window):
            for frames in range(1, config.chunk_frames + 1):
                groups = Groups(*grouped(done, steps, frames, config.actions_per_frame), steps)
                with torch.no_grad():
                    self._observed(pasts, seen[:, :, :frames], groups, observation.task, room=room)
            yield self._given(pasts, seen[:, :, 0], observation, steps, room=room)

    def _given(
        self,
        pasts: Sequence[tuple[Row, ...]],
        present: Tensor,
        observation: Observation,
        steps: Tensor,
        *,
        room: int | None = None,
    ) -> dict[str, Tensor]:
        given = {
            **packed(pasts, self._tokens(pasts, room), dtype=self.caller.dtype),
            "words": self._features(tuple(observation.task)),
            "rate_hz": observation.rate_hz,
            "steps": steps,
        }
        if self.config.mode == "video_and_action":
            given |= {"video_noise": self._noise_of(len(pasts), steps.device), "present": present}
        return given

    def _observed(
        self,
        pasts: Sequence[tuple[Row, ...]],
        latents: Tensor,
        groups: Groups | None,
        task: Sequence[str],
        *,
        room: int | None = None,
    ) -> list[tuple[Row, ...]]:
        """As the model's own, at one of few shapes, through `caller`."""
        given: State = packed(pasts, self._tokens(pasts, room), dtype=self.caller.dtype)
        given |= {"words": self._features(tuple(task)), "latents": latents}
        valid = None
        if groups is not None:
            given |= {"actions": groups.values, "actions_valid": groups.valid, "steps": groups.steps}
            valid = groups.valid.repeat(self.copies, 1, 1)
        made = self.caller("observe", self._read_back, given)
        parts = [Stacked(*(part.transpose(0, 1).flatten(0, 1) for part in stacked)) for stacked in made]
        after = self.model.transformer.rows_after(by_copy(pasts), parts, latents.shape[2], valid)
        return by_episode(after, self.copies)

    def _read_back(self, state: State) -> list[Stacked]:
        """Keys and values of what was seen and done, [B, copies, layers, heads, n, d] each."""
        copies = self.copies
        told = ()
        if "actions" in state:
            told = Groups(state["actions"], state["actions_valid"], state["steps"]).repeated(copies)
        latents = state["latents"].repeat(copies, 1, 1, 1, 1)
        words = _words(self._read(state)["read"])
        made = self.model.transformer.read_back(_history(state), latents, words, *told)
        return [Stacked(*(part.unflatten(0, (copies, -1)).transpose(0, 1) for part in stacked)) for stacked in made]

    def _tokens(self, pasts: Sequence[tuple[Row, ...]], room: int | None) -> int:
        """Tokens that a history is padded to: all that its latent frames can hold; none at an episode's beginning."""
        config, size, patch = self.config, self.model.latent_size, self.config.video.patch
        held = max(min(past[0].frames, config.window) for past in pasts)
        if room is None and held:
            room = next(size for size in rooms(config.window) if size >= held)
        return (room or 0) * (size[0] // patch[1] * (size[1] // patch[2]) + config.actions_per_frame)

    def _features(self, task: tuple[str, ...]) -> Tensor:
        """Of the words, [B, copies, L, E]; with guidance, of none behind them."""
        known = self._known.get(task)
        if known is None:
            device = next(self.model.transformer.parameters()).device
            told = self.model.text([*task, *([""] * len(task) * (self.copies - 1))], device)
            known = self._known[task] = told.unflatten(0, (self.copies, -1)).transpose(0, 1)
            while len(self._known) > INSTRUCTIONS:
                self._known.popitem(last=False)
        self._known.move_to_end(task)
        return known

    def _noise_of(self, batch: int, device: torch.device) -> Tensor:
        """Of the imagined frames: the same for every chunk, so nothing is drawn in a phase."""
        if (batch, device) not in self._noise:
            self._noise = {(batch, device): self.model.video_noise(batch, self.config.chunk_frames)}
        return self._noise[batch, device]

    # The chunk

    def prefix(self) -> tuple[Phase, ...]:
        """Up to the keys and values that the actions read."""
        imagined = [Phase("imagined_video", self._imagine)] if self.config.mode == "video_and_action" else []
        return Phase("words", self._read), *imagined, Phase("action_context", self._prepare)

    def _read(self, state: State) -> Mapping[str, Any]:
        words = self.model.transformer.read(state["words"].transpose(0, 1).flatten(0, 1))
        # Nests of tensors only: every word is read, so there is no mask.
        return {"read": {name: part for name, part in words._asdict().items() if part is not None}}

    def _imagine(self, state: State) -> Mapping[str, Any]:
        return {"imagined": self._sampler(state).video(state["video_noise"])}

    def _prepare(self, state: State) -> Mapping[str, Any]:
        config = self.config
        times, valid = self.model.chunk_times(state["rate_hz"])
        places = state["rate_hz"].new_zeros(len(times), config.max_actions, 1)
        _, held = grouped(places, state["steps"], config.chunk_frames, config.actions_per_frame)
        sampler, past, ahead = self._sampler(state), None, {}
        if "imagined" in state:
            past, ahead["finished"] = sampler.with_frames(state["imagined"], config.video_until)
        context = sampler.action_context(held, state["steps"], past)
        return {"context": context, "times": times, "valid": valid, **ahead}

    def _sampler(self, state: State) -> ChunkSampler:
        return ChunkSampler(self.model.transformer, self.config, _history(state), _words(state["read"]))

    def schedule(self) -> tuple[Tensor, TimeCode]:
        """Noise levels [steps + 1], and what each step's does to the tokens."""
        levels = action_levels(self.config, next(self.model.transformer.parameters()).device)
        return levels, self.model.transformer.action_codes(levels[:-1])

    def start(self, noise: Tensor, state: State) -> Tensor:
        """The noise in groups, [B, f, n, A]."""
        return grouped(noise, state["steps"], self.config.chunk_frames, self.config.actions_per_frame)[0]

    def step(self, x: Any, step: int, schedule: tuple[Tensor, TimeCode], state: State) -> Any:
        """One Euler step towards the data."""
        levels, codes = schedule
        velocity = action_velocity(self.model.transformer, self.config, state["context"], codes, x, step)
        return x + (levels[step + 1] - levels[step]) * velocity

    def chunk(self, x: Any, state: State) -> ActionChunk:
        """In float32, with the time stamps; and the frames that were imagined first."""
        actions = flattened(x, state["steps"]).float()
        imagined = None
        if "finished" in state:
            imagined = self.model.latents_ahead(state["finished"], state["present"])
        return ActionChunk(actions=actions, times=state["times"], valid=state["valid"], imagined=imagined)


def _history(state: State) -> Batch:
    return unpacked(*(state[name] for name in ("keys", "values", "readable", "frames")))


def _words(read: Mapping[str, Any]) -> Words:
    return Words(**read, mask=None)
