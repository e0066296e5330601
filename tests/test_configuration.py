"""Configs to JSON and back, and what they refuse."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import pytest

from wamkit.configuration import ConfigError, from_dict, to_dict
from wamkit.models.lawam import LaWAMConfig, preset


@dataclass(frozen=True)
class Round:
    kind: ClassVar[str] = "round"
    radius: float = 1.0


@dataclass(frozen=True)
class Square:
    kind: ClassVar[str] = "square"
    side: int = 2


@dataclass(frozen=True)
class Picture:
    shape: Round | Square = field(default_factory=Round)
    colours: tuple[str, ...] = ("red",)
    size: tuple[int, int] = (1, 2)
    mode: Literal["fill", "line"] = "fill"
    title: str | None = None


def through_json(value):
    return json.loads(json.dumps(to_dict(value)))


@pytest.mark.parametrize("picture", [Picture(), Picture(Square(5), ("a", "b"), (3, 4), "line", "t")])
def test_round_trip(picture):
    assert from_dict(Picture, through_json(picture)) == picture


@pytest.mark.parametrize("name", ["tiny", "small", "paper"])
def test_round_trip_of_lawam(name):
    assert from_dict(LaWAMConfig, through_json(preset(name))) == preset(name)


def test_a_union_is_told_by_its_kind():
    assert to_dict(Picture(Square()))["shape"] == {"kind": "square", "side": 2}
    assert from_dict(Picture, {"shape": {"kind": "square"}}).shape == Square()


def test_an_integer_is_a_float_and_not_the_other_way():
    assert from_dict(Picture, {"shape": {"kind": "round", "radius": 3}}).shape == Round(3.0)
    with pytest.raises(ConfigError, match=r"shape.side must be int, got 1\.5"):
        from_dict(Picture, {"shape": {"kind": "square", "side": 1.5}})


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"colour": []}, r"config has no field 'colour'. Did you mean 'colours'\?"),
        ({"shape": {"kind": "sqare"}}, r"config.shape.kind is 'sqare'.*'square'"),
        ({"mode": "dots"}, r"config.mode is 'dots'; it is one of 'fill', 'line'"),
        ({"size": [1]}, r"config.size must hold 2 values, got 1"),
        ({"colours": "red"}, r"config.colours must be a list"),
        ({"title": 3}, r"config.title must be str"),
        ({"shape": 3}, r"config.shape must be an object"),
    ],
)
def test_what_is_refused(values, said):
    with pytest.raises(ConfigError, match=said):
        from_dict(Picture, values)
