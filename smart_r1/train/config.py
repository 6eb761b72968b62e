"""Settings as frozen dataclasses, from YAML files and `key=value` on the command line.

A nested dataclass is a nested mapping in YAML and a dotted key on the command line:
`optimizer.learning_rate=1e-4`; what it does not name keeps its default. A dataclass that has
presets can be given by the name of one, alone (`model: nano`) or with changes (`model: {preset:
nano, dropout: 0}`; `model=nano model.dropout=0`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from wosac_toolkit.errors import FormatError, WosacError

Config = TypeVar("Config")
Presets = Mapping[type, Mapping[str, Any]]

_PRESET = "preset"


def load_config(
    kind: type[Config],
    file: Path | None = None,
    assignments: Sequence[str] = (),
    *,
    presets: Presets | None = None,
) -> Config:
    """Read settings; what is not given keeps the default of its class.

    Args:
        kind: a frozen dataclass, whose fields are numbers, text, bool, Literal, tuples of one of
            these, other such dataclasses, or one of these or None.
        file: a YAML file.
        assignments: `key=value`, stronger than the file, the last the strongest; the value is in
            YAML.
        presets: dataclass -> name -> instance.

    Raises:
        FormatError: the file is not YAML.
        WosacError: an unknown key, a value of the wrong type, a missing one, or whatever the
            classes refuse; names the key.
    """
    values = {} if file is None else _read(file)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip():
            raise WosacError(f"{assignment!r} is not of the form key=value")
        _assign(values, key.strip().split("."), _parse(text, where=assignment))
    try:
        config: Config = _build(kind, values, "", presets or {}, None)
    except WosacError as error:
        if file is None or error.where:
            raise
        raise type(error)(error.what, where=str(file), mend=error.mend) from None
    return config


def to_yaml(config: Any) -> str:
    """The settings, all of them, as `load_config` reads them."""
    import yaml  # type: ignore[import-untyped]

    text: str = yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True)
    return text


def differences(one: Any, other: Any) -> list[str]:
    """The dotted keys in which two settings of one class differ."""
    found = []
    for field in dataclasses.fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if dataclasses.is_dataclass(a) and type(a) is type(b):
            found += [f"{field.name}.{key}" for key in differences(a, b)]
        elif a != b:
            found.append(field.name)
    return found


def _read(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text("utf-8")
    except UnicodeDecodeError:
        raise FormatError("not a text file", where=str(file)) from None
    values = _parse(text, where=str(file))
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise FormatError("not a mapping of settings", where=str(file))
    return values


def _parse(text: str, *, where: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise FormatError(f"not YAML: {' '.join(str(error).split())}", where=where) from None


def _assign(values: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Set `values[path[0]][path[1]]...`, making mappings on the way."""
    for name in path[:-1]:
        inner = values.get(name)
        if isinstance(inner, str):
            inner = {_PRESET: inner}
        elif not isinstance(inner, dict):
            inner = {}
        values[name] = inner
        values = inner
    values[path[-1]] = value


def _build(kind: type, values: Any, key: str, presets: Presets, base: Any) -> Any:
    """An instance: `base`, or else the defaults of the class, changed by the values."""
    if not isinstance(values, dict):
        raise WosacError(f"{key} must be a mapping of settings, not {values!r}")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    prefix = f"{key}." if key else ""
    values = dict(values)
    if _PRESET in values and kind in presets:
        base = _preset(kind, values.pop(_PRESET), key, presets)
    given = {}
    for name, value in values.items():
        if name not in fields:
            near = difflib.get_close_matches(str(name), fields, n=1)
            mend = f"did you mean {prefix}{near[0]}?" if near else f"known: {', '.join(fields)}"
            raise WosacError(f"there is no setting {prefix}{name}", mend=mend)
        before = _default(fields[name]) if base is None else getattr(base, name)
        given[name] = _checked(hints[name], value, f"{prefix}{name}", presets, before)
    if base is not None:
        return dataclasses.replace(base, **given)
    missing = [
        prefix + name
        for name, field in fields.items()
        if name not in given and _default(field) is dataclasses.MISSING
    ]
    if missing:
        raise WosacError(f"{', '.join(missing)} must be set")
    return kind(**given)


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _preset(kind: type, name: Any, key: str, presets: Presets) -> Any:
    known = presets[kind]
    if not isinstance(name, str) or name not in known:
        raise WosacError(f"{key} must be one of {', '.join(known)}, not {name!r}")
    return known[name]


def _checked(kind: Any, value: Any, key: str, presets: Presets, before: Any) -> Any:
    """The value, if it is of the type, made the type where nothing is lost."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        (kind,) = (k for k in inner if k is not type(None))
        return _checked(kind, value, key, presets, before)
    if origin is Literal:
        if value not in inner:
            raise WosacError(f"{key} must be one of {', '.join(map(str, inner))}, not {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise WosacError(f"{key} must be a list, not {value!r}")
        return tuple(
            _checked(inner[0], v, f"{key}[{i}]", presets, None) for i, v in enumerate(value)
        )
    if dataclasses.is_dataclass(kind):
        assert isinstance(kind, type)
        if isinstance(value, str) and kind in presets:
            return _preset(kind, value, key, presets)
        base = before if isinstance(before, kind) else None
        return _build(kind, value, key, presets, base)
    return _plain(kind, value, key)


_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def _plain(kind: Any, value: Any, key: str) -> Any:
    if kind is float and isinstance(value, int | str) and not isinstance(value, bool):
        # YAML 1.1 reads 5e-4 as text.
        with contextlib.suppress(ValueError):
            value = float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise WosacError(f"{key} must be {_WORDS[kind]}, not {value!r}")
    return value
