"""Components by name: a frozen dataclass is its own configuration, and `@register` gives it a name in YAML."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import keyword
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Annotated, Any, TypeVar

import pydantic
from pydantic import ConfigDict, PlainSerializer, PlainValidator, TypeAdapter
from pydantic_core import PydanticCustomError, core_schema

from crossover.errors import RecipeError, nearest
from crossover.records import Mix

C = TypeVar("C", bound=type)

# The room that a kind of component lives in; a new file there is a new component, and no list needs an entry.
ROOMS = {
    "objective": "crossover.objectives",
    "noise": "crossover.objectives",
    "controller": "crossover.control.controllers",
    "signal": "crossover.control.signals",
    "corpus": "crossover.data",
    "tokenizer": "crossover.data",
    "optimizer": "crossover.training.optim",
    "learning_rate": "crossover.training.optim",
    "sink": "crossover.evidence.sinks",
}
# A path in place of a name means the component of its kind that reads files.
PATHS = {"corpus": "files", "tokenizer": "file"}
_known: dict[str, dict[str, type]] = {}


def register(kind: str, name: str) -> Callable[[C], C]:
    """Give a frozen dataclass its name in recipes.

    Args:
        kind: The kind of component, a key of `ROOMS` or a kind of your own.
        name: Its name in YAML.

    Returns:
        A class decorator that leaves the class as it is, but for `component_kind` and `component_name`.

    Raises:
        TypeError: The class is not a frozen dataclass, or the name is taken by another class.
    """

    def decorate(cls: C) -> C:
        parameters = getattr(cls, "__dataclass_params__", None)
        if parameters is None or not parameters.frozen:
            raise TypeError(f"{cls.__name__} must be a frozen dataclass to be registered as {kind} '{name}'")
        other = _known.setdefault(kind, {}).get(name, cls)
        if (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
            raise TypeError(f"{kind} '{name}' is already {other.__module__}.{other.__qualname__}")
        _known[kind][name] = cls
        cls.component_kind, cls.component_name = kind, name  # type: ignore[attr-defined]
        cls.__pydantic_config__ = ConfigDict(extra="forbid", arbitrary_types_allowed=True)  # type: ignore[attr-defined]
        return cls

    return decorate


def names(kind: str) -> dict[str, type]:
    """List the components of a kind, after importing the room that they live in.

    Args:
        kind: The kind of component.

    Returns:
        Classes by name.
    """
    room = ROOMS.get(kind)
    if room is not None:
        _visit(room)
    return _known.get(kind, {})


@cache
def _visit(room: str) -> None:
    """Import all modules of a room."""
    package = importlib.import_module(room)
    for module in pkgutil.iter_modules(getattr(package, "__path__", [])):
        importlib.import_module(f"{room}.{module.name}")


def build(kind: str, value: Any) -> Any:
    """Make a component from what a recipe says.

    Args:
        kind: The kind of component.
        value: A name (`masked`), a call (`block(16, count=iid)`), a mapping with `name`, or a component.

    Returns:
        The frozen component.

    Raises:
        PydanticCustomError: The value names no component or cannot be read; the path is added by pydantic.
        pydantic.ValidationError: A field of the component has a wrong name or type.
    """
    if getattr(type(value), "component_kind", None) == kind:
        return value
    if isinstance(value, str):
        bare = value.split("(")[0] not in names(kind) and ("/" in value or "." in value)
        value = {"name": PATHS[kind], "path": value} if bare and kind in PATHS else _from_call(kind, value)
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        raise _problem(f"expected a name or name(key=value), one of {', '.join(sorted(names(kind)))}; not {value!r}")
    known, fields = names(kind), {key: item for key, item in value.items() if key != "name"}
    if value["name"] not in known:
        raise _problem(f"no {kind} called '{value['name']}'; {nearest(value['name'], known)}")
    return _adapter(known[value["name"]]).validate_python(fields)


@cache
def _adapter(cls: type) -> TypeAdapter[Any]:
    return TypeAdapter(cls)


def _problem(message: str) -> PydanticCustomError:
    # YAML can spell half a surrogate pair, which pydantic's messages cannot hold.
    plain = message.encode("utf-8", "backslashreplace").decode("utf-8")
    return PydanticCustomError("component", "{message}", {"message": plain})


def _from_call(kind: str, text: str) -> dict[str, Any]:
    """Read `name(1, key=value)` as a mapping; positional arguments follow the order of the fields."""
    try:
        node = ast.parse(text.strip(), mode="eval").body
        call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
        name = ast.unparse(call.func)
        positional = [_literal(argument) for argument in call.args]
        fields = {keyword.arg: _literal(keyword.value) for keyword in call.keywords if keyword.arg}
    except (SyntaxError, ValueError):
        raise _problem(f"cannot read '{text}' as {kind}; write name or name(key=value), and a path in quotes") from None
    known = names(kind)
    if name not in known:
        path = f"; a path is told by a / or a dot, such as ./{name}" if kind in PATHS else ""
        raise _problem(f"no {kind} called '{name}'; {nearest(name, known)}{path}")
    order = [item.name for item in dataclasses.fields(known[name])]
    if len(positional) > len(order):
        raise _problem(f"{kind} '{name}' takes at most {len(order)} settings ({', '.join(order)})")
    return {"name": name, **dict(zip(order, positional, strict=False)), **fields}


def _literal(node: ast.expr) -> Any:
    """A literal, or the source text of a bare name or nested call (read by the field that receives it)."""
    if isinstance(node, ast.Name | ast.Call | ast.Attribute):
        return ast.unparse(node)
    if isinstance(node, ast.Dict) and None not in node.keys:
        return {_literal(key): _literal(value) for key, value in zip(node.keys, node.values, strict=True) if key}
    return ast.literal_eval(node)


def dump(component: Any) -> dict[str, Any]:
    """Write a component as a mapping with every field, as it stands in a resolved recipe."""
    fields = _adapter(type(component)).dump_python(component, mode="json")
    return {"name": type(component).component_name, **fields}


def label(component: Any) -> str:
    """Write a component as its shortest call, such as `block(16)`: settings at their default are left out."""
    parts = []
    for index, item in enumerate(dataclasses.fields(component)):
        value = getattr(component, item.name)
        if item.default is not dataclasses.MISSING and value == item.default:
            continue
        if item.default_factory is not dataclasses.MISSING and value == item.default_factory():
            continue
        text = _text(value)
        parts.append(text if index == 0 else f"{item.name}={text}")
    return type(component).component_name + (f"({', '.join(parts)})" if parts else "")


def _text(value: Any) -> str:
    """Write a setting so that `_from_call` reads the same value again."""
    if hasattr(type(value), "component_kind"):
        return label(value)
    if isinstance(value, Mix):
        alone = value.shares[0][0] if len(value.shares) == 1 else None
        return alone or "{" + ", ".join(f"{name}: {share!r}" for name, share in value.shares) + "}"
    bare = isinstance(value, str) and value.isascii() and value.isidentifier() and not keyword.iskeyword(value)
    return value if bare else repr(value)


@dataclasses.dataclass(frozen=True)
class Component:
    """Marks a dataclass field that holds a component: `Annotated[Any, Component("noise")]`."""

    kind: str

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        """Tell pydantic how to read and write the field."""
        return core_schema.no_info_plain_validator_function(
            self.read, serialization=core_schema.plain_serializer_function_ser_schema(dump)
        )

    def read(self, value: Any) -> Any:
        """Build the component; an error of a setting inside it names the setting."""
        try:
            return build(self.kind, value)
        except pydantic.ValidationError as error:
            raise _problem(_first(error, self.kind, value)) from None


def _first(error: pydantic.ValidationError, kind: str, value: Any) -> str:
    """Say the first thing that is wrong with a component, after the name of the setting that it is wrong with."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    message = explain(first, build_keys(kind, value))
    return f"{where}: {message}" if where else message


def build_keys(kind: str, value: Any) -> list[str]:
    """List the settings that the named component has, for a hint after a mistyped one."""
    name = value.get("name") if isinstance(value, Mapping) else str(value).split("(")[0].strip()
    cls = names(kind).get(str(name))
    return [item.name for item in dataclasses.fields(cls)] if cls else []


def explain(error: Any, keys: list[str]) -> str:
    """Turn one pydantic error into a sentence: what was wrong, what was expected."""
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"no such setting; {nearest(str(error['loc'][-1]), keys)}"
    if error["type"] in ("missing", "missing_argument"):
        return "is missing"
    message = str(error["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    shown = repr(error["input"])
    return message if error["type"] == "component" else f"{message} (got {shown[:80]})"


def parse_mix(value: Any) -> Mix:
    """Read a mix: a mapping from objective to share, or one objective alone.

    Args:
        value: `{autoregressive: 0.25, "block(16)": 0.75}`, `masked`, or a `Mix`.

    Returns:
        The mix, its objectives under their canonical names.

    Raises:
        PydanticCustomError: An objective is unknown or the shares do not sum to 1.
    """
    if isinstance(value, Mix):
        return value
    if isinstance(value, str):
        value = {value: 1.0}
    if not isinstance(value, Mapping) or not value:
        raise _problem(f"expected objectives and their shares, such as {{masked: 1}}, not {value!r}")
    shares: dict[str, float] = {}
    for text, share in value.items():
        try:
            name = label(build("objective", text))
        except pydantic.ValidationError as error:
            raise _problem(f"{text}: {_first(error, 'objective', text)}") from None
        if not isinstance(share, int | float) or isinstance(share, bool):
            raise _problem(f"the share of '{text}' must be a number, not {share!r}")
        if name in shares:
            raise _problem(f"'{name}' has two shares; add them up")
        shares[name] = float(share)
    try:
        return Mix(tuple(shares.items()))
    except ValueError as error:
        raise _problem(str(error)) from None


def component_of(kind: str, value: Any) -> Any:
    """Build a component outside a recipe.

    Args:
        kind: The kind of component.
        value: Anything that `build` takes.

    Returns:
        The frozen component.

    Raises:
        RecipeError: The component does not exist or a setting of it is wrong.
    """
    try:
        return build(kind, value)
    except pydantic.ValidationError as error:
        raise RecipeError(f"{value}: {_first(error, kind, value)}") from None
    except PydanticCustomError as error:
        raise RecipeError(error.message()) from None


def trust_imports(modules: Sequence[str], *, trust: bool, origin: str) -> None:
    """Import a recipe's own modules, if the person at the command line trusts them.

    Raises:
        RecipeError: Modules are named but not trusted, or one cannot be imported.
    """
    if isinstance(modules, str) or not all(isinstance(module, str) for module in modules):
        raise RecipeError(f"{origin}: imports: expected a list of modules, such as [my_package], not {modules!r}")
    if modules and not trust:
        raise RecipeError(f"{origin}: imports: runs code from {', '.join(modules)}; add --trust if you trust it")
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise RecipeError(f"{origin}: imports: cannot import '{module}': {error}") from None


MixField = Annotated[
    Mix, PlainValidator(parse_mix), PlainSerializer(lambda mix: {name: share for name, share in mix.shares})
]
