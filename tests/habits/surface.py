"""The public surface: which modules and names a user may rely on, and how they are called.

`python -m tests.habits.surface` (or `make golden`) stores it in `api_golden.txt`.
"""

import ast
import functools
import importlib
import inspect
import pkgutil
from pathlib import Path
from types import ModuleType
from typing import Any

GOLDEN = Path(__file__).with_name("api_golden.txt")

Members = dict[str, Any]


@functools.cache
def modules() -> dict[str, Members]:
    """The public modules by name, each with its public names and what they stand for.

    They are the face, the rooms (the folders without an underscore), and every module that one of
    these exports.
    """
    face = importlib.import_module("jaxprune")
    folders = [info.name for info in pkgutil.iter_modules(face.__path__) if info.ispkg]
    rooms = [importlib.import_module(f"jaxprune.{name}") for name in folders if name[0] != "_"]
    found: dict[str, Members] = {}
    waiting = [face, *rooms]
    while waiting:
        module = waiting.pop()
        if module.__name__ not in found:
            found[module.__name__] = members(module)
            waiting += filter(inspect.ismodule, found[module.__name__].values())
    return dict(sorted(found.items()))


def members(module: ModuleType) -> Members:
    """The public names of a module: those in `__all__`, or exported as `x as x`, or defined."""
    names = getattr(module, "__all__", None)
    if names is None:
        tree = ast.parse(inspect.getsource(module))
        names = [name for statement in tree.body for name in _names(statement) if name[0] != "_"]
    return {name: getattr(module, name) for name in sorted(set(names))}


def objects() -> Members:
    """Each public object by the path where it is documented: its room or, without one, the face."""
    rooms = [item for item in modules().items() if item[0] != "jaxprune"]
    return {
        path: value
        for module, inside in [*rooms, ("jaxprune", modules()["jaxprune"])]
        for name, value in inside.items()
        if home(path := f"{module}.{name}", value) == path and not inspect.ismodule(value)
    }


def home(path: str, value: Any) -> str:
    """Where a public object that is found at `path` is documented."""
    if inspect.ismodule(value):
        return value.__name__
    # An alias of something that is not ours is told by its name, not by what it stands for.
    return _rooms().get(id(value), path) if is_ours(value) else path


def is_ours(value: Any) -> bool:
    """Whether a class, a function or the class of an instance is of this package."""
    module = getattr(value, "__module__", None)
    return isinstance(module, str) and module.split(".")[0] == "jaxprune"


def parameters(function: Any) -> list[inspect.Parameter]:
    """The parameters of a function, or of a class's constructor."""
    return list(inspect.signature(function).parameters.values())


def describe() -> str:
    """The whole surface as text, one line a name, the same on every Python."""
    pairs = [(f"{m}.{name}", v) for m, inside in modules().items() for name, v in inside.items()]
    return "".join(f"{line}\n" for path, value in pairs for line in _lines(path, value))


def _names(statement: ast.stmt) -> list[str]:
    match statement:
        case ast.ImportFrom(names=names):
            return [alias.name for alias in names if alias.name == alias.asname]
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            return [name]
        case ast.AnnAssign(target=ast.Name(id=name)):
            return [name]
        case ast.Assign(targets=targets):
            return [target.id for target in targets if isinstance(target, ast.Name)]
    return []


@functools.cache
def _rooms() -> dict[int, str]:
    return {
        id(value): f"{module}.{name}"
        for module, inside in modules().items()
        for name, value in inside.items()
        if module != "jaxprune"
    }


def _lines(path: str, value: Any) -> list[str]:
    if inspect.ismodule(value) or not callable(value) or not is_ours(value):
        return [f"{path}: {'module' if inspect.ismodule(value) else 'value'}"]
    if not inspect.isclass(value):
        return [path + _signature(value)]
    call = ": protocol" if getattr(value, "_is_protocol", False) else _signature(value)
    return [path + call, *_attributes(path, value)]


def _attributes(path: str, cls: type) -> list[str]:
    ours = filter(is_ours, reversed(cls.__mro__))
    merged = {name: value for base in ours for name, value in vars(base).items()}
    return [
        f"{path}.{name}{_call(value)}" for name, value in sorted(merged.items()) if name[0] != "_"
    ]


def _call(attribute: Any) -> str:
    attribute = getattr(attribute, "__func__", attribute)  # of a class or static method
    return _signature(attribute) if inspect.isfunction(attribute) else ""


def _signature(function: Any) -> str:
    # Without annotations: how they are printed differs between the Pythons.
    plain = [
        p.replace(
            annotation=p.empty, default=p.default if p.default is p.empty else _Shown(p.default)
        )
        for p in parameters(function)
    ]
    return str(inspect.Signature(plain))


class _Shown:
    """A default value, printed without an address."""

    def __init__(self, value: Any):
        self.value = value

    def __repr__(self) -> str:
        return getattr(self.value, "__qualname__", None) or repr(self.value)


if __name__ == "__main__":
    GOLDEN.write_text(describe())
