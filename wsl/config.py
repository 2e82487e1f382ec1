"""Typed configuration: constructor signatures become schemas, and refusals name key, value and fix."""

from __future__ import annotations

import difflib
import inspect
import json
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from wsl.errors import UserError

Model = TypeVar("Model", bound=BaseModel)


class ConfigError(UserError, ValueError):
    """The configuration is refused; the message names the key, the value and what is allowed."""


class Strict(BaseModel):
    """Base of all config schemas: unknown keys are refused, values keep their types, instances do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def schema_of(
    name: str, constructor: Callable[..., Any], given: Sequence[str] = (), types: Mapping[str, Any] | None = None
) -> type[Strict]:
    """The config schema of a constructor: its parameters with their types, ranges and defaults, and ``name``.

    Args:
        name: the value of the config key ``name`` that stands for this constructor; empty: the group has no choice.
        given: parameters that the program passes, not the config.
        types: parameters whose type in the config is another one: a group, of which the program makes the argument.
    """
    hints = get_type_hints(inspect.unwrap(_initialiser(constructor)), include_extras=True) | dict(types or {})
    fields: dict[str, Any] = {"name": (Literal[name], ...)} if name else {}
    for parameter in inspect.signature(constructor).parameters.values():
        if parameter.name in given:
            continue
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[parameter.name] = (hints[parameter.name], default)
    return pydantic.create_model(f"{name or constructor.__name__}_config", __base__=Strict, **fields)


#: groups whose keys are the data's, not ours
OPEN = ("data.where",)
TAGS = ("name", "kind")  # fields that tell the members of a union apart


def one_of(schemas: Sequence[type[Strict]], tag: str = "name") -> Any:
    """The type of a config group: one of the schemas, told apart by the field ``tag``, one of ``TAGS``."""
    return schemas[0] if len(schemas) == 1 else Annotated[Union[tuple(schemas)], Field(discriminator=tag)]  # noqa: UP007


def arguments(config: BaseModel) -> dict[str, Any]:
    """The constructor arguments in a group's config (all fields but ``name``)."""
    return {key: getattr(config, key) for key in type(config).model_fields if key != "name"}


def validated(model: type[Model], values: Mapping[str, Any]) -> Model:
    """Check plain values against a schema. No coercion: ``"5"`` is not an integer, ``5`` is a float.

    Raises:
        ConfigError: one line for each fault.
    """
    try:
        return model.model_validate_json(json.dumps(values, default=_refuse), strict=True)
    except pydantic.ValidationError as error:
        lines = [_explain(model, fault) for fault in error.errors()]
        raise ConfigError("\n".join(lines)) from None


def unknown_key(key: str, value: object, allowed: Sequence[str]) -> str:
    """The message for a key that does not exist, with the nearest one that does."""
    near = difflib.get_close_matches(key.rpartition(".")[2], allowed, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return f"unknown key {key}={value}{hint} Allowed here: {', '.join(sorted(allowed)) or 'nothing'}"


def check_key(config: Mapping[str, Any], key: str, value: object) -> None:
    """Raise ConfigError if a config, plain values, does not have this dotted key."""
    parent, _, leaf = key.rpartition(".")
    here: Any = config
    for part in parent.split(".") if parent else ():
        here = here.get(part) if isinstance(here, Mapping) else None
    allowed = [str(k) for k in here] if isinstance(here, Mapping) else []
    if leaf not in allowed and parent in OPEN:
        raise ConfigError(
            f"{key}={value}: the config does not name {leaf} yet; put a plus in front of a column's name: "
            f"+{key}={value}"
        )
    if leaf not in allowed:
        raise ConfigError(unknown_key(key, value, allowed or [str(k) for k in config]))


def _initialiser(constructor: Callable[..., Any]) -> Callable[..., Any]:
    return constructor.__init__ if inspect.isclass(constructor) else constructor


def _refuse(value: object) -> Any:
    raise ConfigError(f"a config holds plain values, not {type(value).__name__}: {value!r}")


def _explain(model: type[BaseModel], fault: Any) -> str:
    """One fault in the words of the config: the key as typed on the command line, the value, what is allowed."""
    path, here = [], model
    for part in fault["loc"]:
        if _plain_union(here):  # a number of this type or of that: the type is not part of the key
            break
        members = _members(here, part)
        if members is None:  # the tag of a discriminated union: not part of the key
            here = _tagged(here, part)
            continue
        path.append(str(part))
        here = members
    key, value = ".".join(path), fault["input"]
    if fault["type"] == "extra_forbidden":
        parent = _parent(model, fault["loc"])
        return unknown_key(key, value, sorted(parent.model_fields))
    if fault["type"] == "missing":
        return f"{key} is missing"
    if fault["type"] in ("union_tag_invalid", "union_tag_not_found"):
        tag = fault["ctx"]["discriminator"].strip("'")
        name = value.get(tag) if isinstance(value, dict) else value
        return f"{key}.{tag}={name}: allowed is one of {fault['ctx'].get('expected_tags', 'the options of the group')}"
    message = fault["msg"].replace("Input should", "should").removeprefix("Value error, ")
    return f"{key}={value!r}: {message[:1].lower()}{message[1:]}"


def _plain_union(here: Any) -> bool:
    """Whether a field is of one of several types, none of which has keys or members of its own."""
    annotation = here.annotation if isinstance(here, pydantic.fields.FieldInfo) else here
    if get_origin(annotation) not in (Union, types.UnionType) or _options(annotation):
        return False
    plain = [one.__origin__ if get_origin(one) is Annotated else one for one in get_args(annotation)]
    return all(one in (int, float, str, bool, type(None)) for one in plain)


def _members(here: Any, part: str | int) -> Any:
    """What ``part`` of the location leads to, or None if it is a union tag."""
    if isinstance(part, int):
        return here
    if inspect.isclass(here) and issubclass(here, BaseModel):
        return here.model_fields.get(part, here)
    annotation = here.annotation if isinstance(here, pydantic.fields.FieldInfo) else here
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return _members(annotation, part)
    options = _options(annotation)
    if any(part in _tags(option) for option in options):
        return None
    return _members(options[0], part) if len(options) == 1 else here


def _tags(option: type[BaseModel]) -> tuple[Any, ...]:
    """The values of its tag that choose this member of a union."""
    tags = [option.model_fields[tag] for tag in TAGS if tag in option.model_fields]
    return tuple(value for tag in tags for value in getattr(tag.annotation, "__args__", ()))


def _options(annotation: Any) -> list[type[BaseModel]]:
    arguments_of = getattr(annotation, "__args__", ())
    found = [a for a in arguments_of if inspect.isclass(a) and issubclass(a, BaseModel)]
    return found + [b for a in arguments_of if not inspect.isclass(a) for b in _options(a)]


def _tagged(here: Any, tag: str | int) -> Any:
    annotation = here.annotation if isinstance(here, pydantic.fields.FieldInfo) else here
    return next((o for o in _options(annotation) if tag in _tags(o)), here)


def _parent(model: type[BaseModel], location: Sequence[str | int]) -> type[BaseModel]:
    here: Any = model
    for part in location[:-1]:
        following = _members(here, part)
        here = _tagged(here, part) if following is None else following
    annotation = here.annotation if isinstance(here, pydantic.fields.FieldInfo) else here
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return annotation
    return (_options(annotation) or [model])[0]
