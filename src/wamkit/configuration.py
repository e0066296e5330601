"""Frozen dataclass configs to and from plain JSON objects, refusing what they do not know."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any, Union, get_args, get_origin

from wamkit.errors import WamkitError, suggest


class ConfigError(WamkitError):
    """A config holds a key or a value that its class does not know."""


def to_dict(config: Any) -> Any:
    """A config as nested dicts, lists and scalars, ready for JSON; a union member carries its class as ``kind``."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        values = {field.name: to_dict(getattr(config, field.name)) for field in dataclasses.fields(config)}
        kind = getattr(type(config), "kind", None)
        return ({"kind": kind} if kind is not None else {}) | values
    if isinstance(config, dict):
        return {str(key): to_dict(value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return [to_dict(value) for value in config]
    return config


def from_dict[T](config_class: type[T], values: Any, where: str = "config") -> T:
    """Build ``config_class`` from what `to_dict` made of it.

    Raises:
        ConfigError: a key that the class does not have (with a suggestion), or a value of the wrong type.
    """
    return _build(config_class, values, where)


def _build(kind: Any, value: Any, where: str) -> Any:
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return _build_union(get_args(kind), value, where)
    if origin is typing.Literal:
        if value not in get_args(kind):
            raise ConfigError(f"{where} is {value!r}; it is one of {', '.join(map(repr, get_args(kind)))}")
        return value
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(kind, value, where)
    if origin in (tuple, list):
        items = get_args(kind)
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where} must be a list, got {value!r}")
        item_kinds = [items[0]] * len(value) if len(items) == 2 and items[1] is Ellipsis else items
        if len(item_kinds) != len(value):
            raise ConfigError(f"{where} must hold {len(item_kinds)} values, got {len(value)}")
        built = [
            _build(item, entry, f"{where}[{i}]") for i, (item, entry) in enumerate(zip(item_kinds, value, strict=True))
        ]
        return origin(built)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(kind, type) and origin is None and not isinstance(value, kind):
        raise ConfigError(f"{where} must be {kind.__name__}, got {value!r}")
    return value


def _is_config(member: Any) -> bool:
    return dataclasses.is_dataclass(member)


def _build_union(members: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in members:
        return None
    if isinstance(value, dict) and "kind" in value:
        kinds = {member.kind: member for member in members if _is_config(member)}
        if value["kind"] not in kinds:
            raise ConfigError(f"{where}.kind is {value['kind']!r}{suggest(value['kind'], kinds)}")
        return _build(kinds[value["kind"]], value, where)
    errors = []
    for member in members:
        try:
            return _build(member, value, where)
        except ConfigError as error:
            errors.append(str(error))
    raise ConfigError(errors[0])


def _build_dataclass(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(value):
        return value
    if not isinstance(value, dict):
        raise ConfigError(f"{where} must be an object with the fields of {kind.__name__}, got {value!r}")
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
    built = {}
    for key, entry in value.items():
        if key == "kind" and getattr(kind, "kind", None) == entry:
            continue
        if key not in fields:
            raise ConfigError(f"{where} has no field {key!r}.{suggest(key, fields)}")
        built[key] = _build(hints[key], entry, f"{where}.{key}")
    try:
        return kind(**built)
    except TypeError as error:
        raise ConfigError(f"{where}: {error}") from None
