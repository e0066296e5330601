"""The recording of all denoise steps, made of one step's: they are alike, so one is recorded and the others are copies.

A step may read its own row of each tensor of `ActPhases.schedule` and the following one; it is recorded with these as
inputs. Unrolled, each copy has its rows as constants, so that they are folded into what they modulate. Compiled, the
one step is compiled once and called for each pair of rows, and what does not follow from the noise is computed before.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from wamkit.inference.runtime_chunk import tensors_of
from wamkit.inference.runtime_fusions import optimise
from wamkit.inference.runtime_passes import Constants, get_constant, value
from wamkit.inference.runtime_program import build, compiled, lower
from wamkit.inference.runtime_record import Recording, RuntimeUnsupported
from wamkit.models.phases import ActPhases, State

Recorder = Callable[[Callable[..., Any], tuple[Any, ...]], Recording]


def rows_of(schedule: Any, steps: int) -> list[Any]:
    """Each step's rows of the schedule: its own and the following one, or its own twice where there is none."""
    longer = pytree.tree_map_only(Tensor, lambda leaf: torch.cat([leaf, leaf[-1:]]), schedule)
    return [
        pytree.tree_map_only(Tensor, lambda leaf, step=step: leaf[step : step + 2], longer) for step in range(steps)
    ]


def check_alike(phases: ActPhases, schedule: Any, rows: Sequence[Any], noise: Tensor, state: State) -> None:
    """Compare the last step, run as it is and run as a first step of its rows.

    Raises:
        RuntimeUnsupported: a step does more with its number than to read its rows of the schedule.
    """
    x, last = phases.start(noise, state), phases.steps - 1
    results = [phases.step(x, last, schedule, state), phases.step(x, 0, rows[-1], state)]
    pairs = zip(*(pytree.tree_leaves(result) for result in results), strict=True)
    if not all(torch.allclose(first, second, rtol=1e-4, atol=1e-5) for first, second in pairs):
        raise RuntimeUnsupported(
            f"{type(phases).__name__}.step does more with its number than to index the schedule with it (its own row or"
            " the following one): put what differs from step to step into ActPhases.schedule"
        )


@dataclass
class Loop:
    """What leads from the noise to the chunk, in pieces."""

    begin: Recording
    """(noise, state) to what the first step starts from."""
    step: Recording
    """(x, rows, state) to x."""
    end: Recording
    """(x, state) to the chunk's tensors."""
    rows: list[list[Tensor]]
    """Leaves of each step's rows."""

    def unrolled(self) -> Recording:
        """(noise, state) to the chunk's tensors, as one graph."""
        module = fx.GraphModule(nn.Module(), fx.Graph())
        inputs = [_placeholder(module.graph, node) for node in self.begin.graph.nodes if node.op == "placeholder"]
        state, known = inputs[1:], dict[int, fx.Node]()
        x = _inlined(module, self.begin, inputs, known)
        for leaves in self.rows:
            constants = [_constant(module, leaf, known) for leaf in leaves]
            x = _inlined(module, self.step, [*x, *constants, *state], known)
        module.graph.output(_inlined(module, self.end, [*x, *state], known))
        return Recording(module, self.end.outputs)

    def compiled(self, used: Sequence[int], constants: Constants, inputs: Sequence[Tensor]) -> Callable[..., Any]:
        """The same as calls of one compiled step; the recordings cannot be unrolled afterwards.

        Args:
            used: Which leaves of the state the calls will be given.
            constants: Of the runtime.
            inputs: Noise and these leaves.
        """
        for recording in (self.begin, self.step, self.end):
            optimise(recording, constants)
        begin, end = build(self.begin).run, build(self.end).run
        count = sum(node.op == "placeholder" for node in self.begin.graph.nodes) - 1
        moving = len(self.begin.output_nodes()) + len(self.rows[0])
        lower(self.step)  # before it is split: masks are made once
        once_recording, wanted = _split(self.step, moving)
        once = build(once_recording).run

        def whole(given: Sequence[Tensor]) -> list[Any]:
            filled: list[Any] = [None] * count
            for index, leaf in zip(used, given, strict=True):
                filled[index] = leaf
            return filled

        def fixed(state: list[Any]) -> list[Tensor]:
            all_of_them = [*([None] * moving), *state]
            return [all_of_them[index] for index in wanted] + once(*all_of_them)

        noise, *leaves = inputs
        state = whole(leaves)
        x = begin(noise.contiguous(), *state)
        each = compiled(self.step, [*x, *self.rows[0], *fixed(state)])

        def run(noise: Tensor, *leaves: Tensor) -> list[Tensor]:
            state = whole(leaves)
            x, known = begin(noise.contiguous(), *state), fixed(state)
            for rows in self.rows:
                x = each(*x, *rows, *known)
            return end(*x, *state)

        return run


def record_loop(phases: ActPhases, rows: Sequence[Any], noise: Tensor, state: State, record: Recorder) -> Loop:
    """Record what leads from the noise to the chunk.

    Args:
        phases: Of the model.
        rows: From `rows_of`.
        noise: Of the shape to record for.
        state: What the prefix gave, likewise.
        record: Makes a recording of a function of nests of tensors.

    Raises:
        RuntimeUnsupported: a step returns another shape or precision than it is given.
    """
    begin = record(phases.start, (noise, state))
    with torch.no_grad():
        x = phases.start(noise, state)
    step = record(lambda x, rows, state: phases.step(x, 0, rows, state), (x, rows[0], state))
    end = record(lambda x, state: tensors_of(phases.chunk(x, state)), (x, state))
    for given, returned in zip(pytree.tree_leaves(x), step.output_nodes(), strict=True):
        after = value(returned)
        if (given.shape, given.dtype) != (after.shape, after.dtype):
            raise RuntimeUnsupported(
                f"{type(phases).__name__}.step is given {given.dtype} {tuple(given.shape)} and returns {after.dtype}"
                f" {tuple(after.shape)}: steps must be alike"
            )
    return Loop(begin, step, end, [pytree.tree_leaves(entry) for entry in rows])


def drop_unused_inputs(loop: Recording) -> list[int]:
    """Leave out of a loop what it does not read of the state; the numbers of the state's leaves that it does read."""
    _, *state = [node for node in loop.graph.nodes if node.op == "placeholder"]
    used = [index for index, node in enumerate(state) if node.users]
    for node in state:
        if not node.users:
            loop.graph.erase_node(node)
    return used


def keep_outputs(prefix: Recording, wanted: Sequence[int]) -> None:
    """Let a prefix return these of its outputs alone; what only the others needed is not computed any more."""
    output = next(node for node in prefix.graph.nodes if node.op == "output")
    returned = output.args[0]
    assert isinstance(returned, (list, tuple))
    output.args = ([returned[index] for index in wanted],)
    prefix.graph.eliminate_dead_code()


def _placeholder(graph: fx.Graph, like: fx.Node) -> fx.Node:
    node = graph.placeholder(like.name)
    node.meta = copy.copy(like.meta)
    return node


def _constant(module: fx.GraphModule, tensor: Tensor, known: dict[int, fx.Node]) -> fx.Node:
    """A node for a tensor, one for all uses; ``known`` must live as long as the tensors do."""
    node = known.get(id(tensor))
    if node is None:
        name = f"_given{len(known)}"
        if isinstance(tensor, nn.Parameter):
            module.register_parameter(name, tensor)
        else:
            module.register_buffer(name, tensor, persistent=False)
        node = known[id(tensor)] = module.graph.create_node("get_attr", name)
        node.meta["val"] = tensor
    return node


def _inlined(
    module: fx.GraphModule, recording: Recording, given: Sequence[fx.Node], known: dict[int, fx.Node]
) -> list[fx.Node]:
    """A copy of a recording at the end of a module's graph; the nodes of its outputs."""
    copies: dict[fx.Node, fx.Node] = {}
    arguments = iter(given)
    for node in recording.graph.nodes:
        if node.op == "placeholder":
            copies[node] = next(arguments)
        elif node.op == "get_attr":
            tensor = get_constant(recording.module, node)
            assert tensor is not None
            copies[node] = _constant(module, tensor, known)
        elif node.op == "output":
            outputs: Any = map_arg(node.args[0], lambda node: copies[node])
            return list(outputs)
        else:
            copies[node] = module.graph.node_copy(node, lambda node: copies[node])
    raise AssertionError("a graph without an output")


def _split(step: Recording, moving: int) -> tuple[Recording, list[int]]:
    """Take out of a step what does not follow from its first ``moving`` inputs.

    Returns:
        That as a recording of all inputs, and the numbers of the inputs that the step still reads itself. The step
        then takes the moving inputs, these, and the results of the other recording.
    """
    graph = step.graph
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    follows = set(inputs[:moving])
    for node in graph.nodes:
        if node.op == "call_function" and any(source in follows for source in node.all_input_nodes):
            follows.add(node)
    known = [
        node
        for node in graph.nodes
        if node.op == "call_function" and node not in follows and any(user in follows for user in node.users)
    ]
    before, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in graph.nodes:
        if node.op != "output":
            copies[node] = before.node_copy(node, lambda node: copies[node])
    before.output([copies[node] for node in known])
    before.eliminate_dead_code()
    once = fx.GraphModule(step.module, before)
    for node in known:
        with graph.inserting_after(inputs[-1]):
            stand_in = graph.placeholder(f"known_{node.name}")
        inputs.append(stand_in)
        stand_in.meta = copy.copy(node.meta)
        node.replace_all_uses_with(stand_in)
    graph.eliminate_dead_code()
    unread = {index for index, node in enumerate(inputs) if index >= moving and not node.users}
    for index in unread:
        graph.erase_node(inputs[index])
    count = len(inputs) - len(known)
    return Recording(once, pytree.tree_structure([0] * len(known))), [
        index for index in range(moving, count) if index not in unread
    ]
