"""Low-rank adaptation through peft, injected into modules whose own names and weights stay as they were."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import cast

from torch import Tensor, nn

ADAPTER = "wam"
_OWN = ".base_layer"


def add_lora(model: nn.Module, targets: str, *, rank: int, alpha: float) -> None:
    """Give every linear layer whose name matches a rank-``rank`` correction that starts at zero.

    Args:
        model: changed in place.
        targets: regular expression over the names of modules, matched whole.
        rank: of the correction.
        alpha: the correction is scaled by ``alpha / rank``.
    """
    from peft import LoraConfig, inject_adapter_in_model

    # peft says int, and divides by the rank: any number serves.
    config = LoraConfig(r=rank, lora_alpha=cast("int", alpha), target_modules=targets, lora_dropout=0.0, bias="none")
    inject_adapter_in_model(config, model, adapter_name=ADAPTER)


def lora_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """The corrections' own parameters."""
    for name, parameter in model.named_parameters():
        if is_lora(name):
            yield parameter


def is_lora(name: str) -> bool:
    """Whether a parameter of this name belongs to a correction."""
    return f".lora_A.{ADAPTER}." in name or f".lora_B.{ADAPTER}." in name


def base_name(name: str) -> str:
    """The name that a parameter had before corrections were added."""
    return name.replace(_OWN, "")


def load_base_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load weights saved before corrections were added; the corrections stay as they are.

    Raises:
        ValueError: a name is missing or unknown, or a size differs.
    """
    own = {name: value for name, value in model.state_dict().items() if not is_lora(name)}
    wanted = {base_name(name): name for name in own}
    odd = sorted(wanted.keys() ^ weights.keys())
    odd += [name for name in wanted.keys() & weights.keys() if own[wanted[name]].shape != weights[name].shape]
    if odd:
        raise ValueError(f"{len(odd)} weights do not fit, {odd[0]!r} for one: the config has other dimensions")
    model.load_state_dict({own_name: weights[name] for name, own_name in wanted.items()}, strict=False)
