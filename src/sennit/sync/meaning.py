"""What a function means: its code and all that it names, followed as far as code of the program goes.

    def scaled(x): return helper(x) * SCALE    ─►  scaled's code, helper's code, SCALE = 7     parts, compared by value
                                                   where each of them was found                watched, compared by identity

Two processes agree on a function when their parts are equal; here it still means the same while what is watched is there.
Whatever can change without being assigned (a list, a lock, a connection, a logger, a stream) has no meaning that a
second process could share, and `meaning_of` says so. Libraries (the standard one, what is installed, sennit) are
taken at their word: their functions are not followed, but what they hand out is looked at: `os.environ`, `random.random`.
"""

from __future__ import annotations

import builtins
import dis
import enum
import functools
import hashlib
import inspect
import json
import locale
import os
import re
import sys
import sysconfig
import time
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta, tzinfo
from datetime import time as time_of_day
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePath
from typing import Any, Final, TypeVar
from uuid import UUID

__all__ = ["Meaning", "NoMeaning", "is_library", "meaning_of", "surroundings"]

_FUNCTIONS_MAX: Final = 200
"""So many functions and classes are followed; a body that reaches more is not judged."""

_PLAIN: Final = (
    bool, int, float, complex, str, bytes, range, type(None), type(Ellipsis), Decimal, Fraction, UUID, PurePath, date,
    time_of_day, timedelta, tzinfo, types.GenericAlias, types.UnionType, TypeVar,
)  # fmt: skip
"""The same in every process if their `repr` is. `date` includes `datetime`."""

_LOADS: Final = {"LOAD_GLOBAL", "LOAD_NAME"}
_ATTRIBUTES: Final = {"LOAD_ATTR", "LOAD_METHOD"}
_SILENT: Final = {"EXTENDED_ARG", "CACHE", "PUSH_NULL"}

# Their effect, or what they return, is of this process. `print` goes to a stream that a notebook or a test replaces.
_LOCAL_BUILTINS: Final = {
    "print", "input", "breakpoint", "eval", "exec", "compile", "globals", "vars", "__import__", "hash", "id",
}  # fmt: skip
_LOCAL_FUNCTIONS: Final = {
    "os.getenv", "os.putenv", "os.unsetenv", "os.chdir", "os.fchdir", "os.umask", "os.nice", "sys.setrecursionlimit",
    "sys.exc_info", "locale.setlocale",
}  # fmt: skip
_LOCAL_MODULES: Final = {"logging", "warnings", "signal", "atexit", "multiprocessing", "contextvars", "faulthandler"}
_OF_FRAMEWORKS: Final = {
    "_abc_impl", "_field_defaults", "model_config", "model_fields", "model_computed_fields",
}  # fmt: skip
"""In classes: of ABC, NamedTuple and pydantic."""
_C_FUNCTIONS: Final = {"ufunc", "_ArrayFunctionDispatcher", "cython_function_or_method"}  # numpy


class NoMeaning(Exception):
    """A function uses what only this process has; the text says what."""


@dataclass(slots=True)
class Meaning:
    """What was found.

    Attributes:
        parts: what is named → a digest of its value.
        modules: the program's own modules that were looked into.
    """

    parts: dict[str, str] = field(default_factory=dict)
    modules: set[str] = field(default_factory=set)
    _found: list[tuple[Mapping[str, Any], str, Any]] = field(default_factory=list)
    _codes: list[tuple[types.FunctionType, types.CodeType]] = field(default_factory=list)

    def digest(self) -> bytes:
        """Return 16 bytes that are equal where the parts are."""
        return hashlib.blake2b(json.dumps(self.parts, sort_keys=True).encode(), digest_size=16).digest()

    def changed(self) -> str:
        """Return what was assigned anew in this process since then, "" if nothing was. About 50 ns a part."""
        for names, name, value in self._found:
            if names.get(name, _ABSENT) is not value:
                return name
        for function, code in self._codes:
            if function.__code__ is not code:
                return function.__qualname__
        around = surroundings()
        return next((what for what, value in around.items() if self.parts.get(what) != value), "")

    def differs(self, parts: Mapping[str, str]) -> str:
        """Return what is another one in these parts, "" if nothing is."""
        return next((n for n in sorted({*self.parts, *parts}) if self.parts.get(n) != parts.get(n)), "")

    def watch(self, names: Mapping[str, Any], name: str, value: Any) -> None:
        """Note where a value was found."""
        self._found.append((names, name, value))

    def watch_code(self, function: types.FunctionType) -> None:
        """Note a function whose code may be replaced in place."""
        self._codes.append((function, function.__code__))

    def add(self, name: str, image: str) -> None:
        """Note a value by what it looks like."""
        self.parts[name] = _digest(image)


_ABSENT: Final = object()


def surroundings() -> dict[str, str]:
    """Return what a process has one of and a program may set: its folder, locale, time zone, limits."""
    return {
        "the working directory": _digest(os.getcwd()),  # noqa: PTH109 - a string
        "the locale": locale.setlocale(locale.LC_ALL),
        "the time zone": repr(time.tzname),
        "the recursion limit": str(sys.getrecursionlimit()),
        "the limit of digits": str(getattr(sys, "get_int_max_str_digits", int)()),
    }


def meaning_of(function: Callable[..., Any]) -> Meaning:
    """Return what a function means in this process.

    Raises:
        NoMeaning: it uses something that each process would have its own of.
    """
    return _Walk(function).meaning


def is_library(module: str | None) -> bool:
    """Return whether a module is of the standard library, installed, or of sennit; in doubt it is the program's own."""
    if module is None or module in {"__main__", "__mp_main__"}:
        return False
    if module.partition(".")[0] in {*sys.stdlib_module_names, "sennit"}:
        return True
    file = getattr(sys.modules.get(module), "__file__", None)
    return file is not None and _is_installed(str(Path(file)))


@functools.cache
def _is_installed(file: str) -> bool:
    folders = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    parts = Path(file).parts
    return "site-packages" in parts or "dist-packages" in parts or any(Path(f) in Path(file).parents for f in folders)


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def _named(thing: Any) -> str:
    """Return `module:qualname`; a worker process knows the main script by another name."""
    module = str(getattr(thing, "__module__", None)).replace("__mp_main__", "__main__")
    return f"{module}:{getattr(thing, '__qualname__', repr(thing))}"


class _Walk:
    def __init__(self, function: Callable[..., Any]) -> None:
        self.meaning = Meaning()
        self._home = function.__module__
        self._seen: set[int] = set()
        self._todo: list[Any] = [function]
        if not isinstance(function, types.FunctionType):
            self._todo = []
            self._value(function, "it", "itself", "it")
        self.meaning.parts |= surroundings()
        while self._todo:
            one = self._todo.pop()
            if id(one) in self._seen:
                continue
            self._seen.add(id(one))
            if len(self._seen) > _FUNCTIONS_MAX:
                raise NoMeaning(f"it uses more than {_FUNCTIONS_MAX} functions of its program")
            if isinstance(one, type):
                self._class(one)
            else:
                self._function(one)

    def _is_own(self, thing: Any) -> bool:
        module = getattr(thing, "__module__", None)
        if isinstance(thing, types.FunctionType) and module is not None:
            true_module = thing.__globals__.get("__name__")
            return any(self._is_own_module(name) for name in (module, true_module))
        return self._is_own_module(module)

    def _is_own_module(self, module: str | None) -> bool:
        """A program may be installed, too: what is of the body's own package is its own."""
        package = self._home.partition(".")[0]
        return module == self._home or (
            not is_library(module)
            or (package != "sennit" and module is not None and module.partition(".")[0] == package)
        )

    # ------------------------------------------------------------ what is followed

    def _function(self, function: types.FunctionType) -> None:
        meaning, where = self.meaning, function.__qualname__
        meaning.modules.add(str(function.__globals__.get("__name__")))
        meaning.add(f"{_named(function)}()", _code_image(function.__code__))
        meaning.watch_code(function)
        self._code(function.__code__, function, where)
        for default in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            self._value(default, where, "a default value", f"{_named(function)} default")
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            try:
                self._value(cell.cell_contents, where, name, f"{_named(function)}.{name}")
            except ValueError:  # not assigned yet
                continue

    def _class(self, cls: type) -> None:
        if not isinstance(type(cls), type) or self._is_own(type(cls)):
            raise NoMeaning(f"{cls.__qualname__} has a metaclass of its own")
        for base in cls.__mro__:
            if self._is_own(base):
                self.meaning.modules.add(base.__module__)
                for name, value in vars(base).items():
                    self._member(base, name, value)

    def _member(self, cls: type, name: str, value: Any) -> None:
        inner: list[Any] = [value]
        if isinstance(value, (staticmethod, classmethod)):
            inner = [value.__func__]
            if isinstance(value, classmethod) and _stores_attributes(value.__func__):
                raise NoMeaning(f"{cls.__qualname__}.{name} assigns attributes of the class")
        elif isinstance(value, property):
            inner = [part for part in (value.fget, value.fset, value.fdel) if part is not None]
        elif isinstance(value, functools.cached_property):
            inner = [value.func]
        for one in inner:
            if isinstance(one, types.FunctionType):
                if self._is_own(one) and not _is_generated(one):
                    self.meaning.watch(vars(cls), name, value)
                    self._todo.append(one)
            elif not (
                (name.startswith("__") and name.endswith("__"))
                or name in _OF_FRAMEWORKS
                or issubclass(cls, enum.Enum)
                or (inspect.isdatadescriptor(one) and is_library(type(one).__module__))
            ):
                self.meaning.watch(vars(cls), name, value)
                self._value(one, cls.__qualname__, name, f"{_named(cls)}.{name}")

    def _code(self, code: types.CodeType, function: types.FunctionType, where: str) -> None:
        """Look at each global, and at what is reached from it through modules, classes and functions."""
        steps = [step for step in dis.get_instructions(code) if step.opname not in _SILENT]
        if {"__class__", "type"} & set(code.co_names) and any(step.opname == "STORE_ATTR" for step in steps):
            raise NoMeaning(f"{where} may assign attributes of a class")
        for n, step in enumerate(steps):
            if step.opname in {"STORE_GLOBAL", "DELETE_GLOBAL"}:
                raise NoMeaning(f"{where} assigns the global {step.argval}")
            if step.opname == "IMPORT_NAME":
                self._import(step.argval, steps[n + 1 :], function, where)
            elif step.opname in _LOADS:
                self._chain(steps[n:], function, where)
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):  # a lambda, a comprehension, a function inside
                self._code(constant, function, where)

    def _chain(self, steps: list[dis.Instruction], function: types.FunctionType, where: str) -> None:
        """Look at a global, and what is reached from it through modules: `os.environ`, `state.helpers.LIMIT`."""
        names: Mapping[str, Any] = function.__globals__
        name = spelt = steps[0].argval
        if name not in names:
            if name in _LOCAL_BUILTINS and hasattr(builtins, name):
                raise NoMeaning(f"{where} calls {name}()")
            return  # another builtin, or not there at all
        value, after = names[name], 1
        self.meaning.watch(names, name, value)
        while isinstance(value, types.ModuleType) and after < len(steps) and steps[after].opname in _ATTRIBUTES:
            names, name = vars(value), steps[after].argval
            value, after, spelt = getattr(value, name, _ABSENT), after + 1, f"{spelt}.{name}"
            if value is _ABSENT:
                return
            if name in names:  # else made by the module when it is asked
                self.meaning.watch(names, name, value)
        if spelt in _LOCAL_FUNCTIONS:
            raise NoMeaning(f"{where} calls {spelt}()")
        key = f"{function.__globals__.get('__name__')}:{spelt}".replace("__mp_main__", "__main__")
        self._value(value, where, spelt, key)
        if after < len(steps) and isinstance(value, (types.ModuleType, type, types.FunctionType)):
            self._attribute(value, steps[after], where, spelt)

    def _attribute(self, value: Any, step: dis.Instruction, where: str, spelt: str) -> None:
        """What is done with a module, a class or a function next."""
        if step.opname in {"STORE_ATTR", "DELETE_ATTR", "COPY"}:  # the last is `X.total += 1`
            raise NoMeaning(f"{where} assigns attributes of {spelt}")
        if isinstance(value, types.FunctionType) and step.opname in _ATTRIBUTES and self._is_own(value):
            raise NoMeaning(f"{where} uses {spelt}.{step.argval}, an attribute of a function")

    def _import(self, module: str, after: list[dis.Instruction], function: types.FunctionType, where: str) -> None:
        """An import inside a function: only of a library, and of names that mean the same anywhere."""
        if not module or not is_library(module) or module.partition(".")[0] in {"os", "sys", "sennit", *_LOCAL_MODULES}:
            raise NoMeaning(f"{where} imports {module or 'a module of its package'} when it is called")
        for step in after:
            if step.opname == "IMPORT_FROM":
                found = getattr(sys.modules.get(module), step.argval, None)
                self._value(found, where, step.argval, f"{_named(function)} imports {module}.{step.argval}")
            elif not step.opname.startswith("STORE_"):
                break

    # ------------------------------------------------------------ values

    def _value(self, value: Any, where: str, name: str, key: str) -> None:
        if hasattr(value, "cache_info") and hasattr(value, "__wrapped__"):
            if not inspect.signature(value).parameters:
                raise NoMeaning(f"{where} uses {name}, which is made once and kept")
            value = value.__wrapped__  # its results are the same in every process
        if isinstance(value, types.FunctionType):
            package = str(value.__module__).partition(".")[0]
            if package in {"sennit", *_LOCAL_MODULES} and not self._is_own_module(value.__module__):
                raise NoMeaning(f"{where} uses {name} of {package}")
            if self._is_own(value):
                self._todo.append(value)
            self.meaning.add(key, _named(value))
        elif isinstance(value, type):
            if self._is_own(value):
                self._todo.append(value)
            self.meaning.add(key, _named(value))
        elif isinstance(value, types.ModuleType):
            if not is_library(value.__name__) or value.__name__.partition(".")[0] in _LOCAL_MODULES:
                raise NoMeaning(f"{where} uses the module {name}")
            self.meaning.add(key, value.__name__)
        else:
            image = _image(value)
            if image is None:
                raise NoMeaning(
                    f"{where} uses {name}, a {type(value).__name__}, which each process would have its own of"
                )
            self.meaning.add(key, image)


def _image(value: Any) -> str | None:
    """Return what a value looks like wherever it is the same, None if it can change or says nothing."""
    kind = _named(type(value))
    if isinstance(value, enum.Enum):
        return f"{kind}.{value.name}"
    if isinstance(value, (tuple, frozenset)):
        images = [_image(item) for item in value]
        if None in images:
            return None
        known = [image for image in images if image is not None]
        return f"{kind}({', '.join(known if isinstance(value, tuple) else sorted(known))})"
    if isinstance(value, re.Pattern):
        return f"{kind}({value.pattern!r}, {value.flags})"
    if isinstance(value, (type, types.FunctionType)):  # in a tuple: by name; what it does is not looked at
        return None if not is_library(value.__module__) else _named(value)
    if isinstance(value, types.BuiltinFunctionType):
        owner = value.__self__
        return _named(value) if owner is None or isinstance(owner, (types.ModuleType, type)) else None
    if isinstance(value, _PLAIN) or type(value).__module__ == "typing":
        return f"{kind} {value!r}"
    if type(value).__name__ in _C_FUNCTIONS:
        return f"{kind} {getattr(value, '__name__', '')}"
    if isinstance(value, types.ModuleType):
        return value.__name__ if is_library(value.__name__) else None
    return None


def _is_generated(function: types.FunctionType) -> bool:
    """Return whether a method was made by a library, as by dataclass: what it does follows from the class."""
    inner = inspect.unwrap(function)
    return isinstance(inner, types.FunctionType) and inner.__code__.co_filename.startswith("<")


def _stores_attributes(function: Any) -> bool:
    code = getattr(function, "__code__", None)
    return code is None or any(step.opname == "STORE_ATTR" for step in dis.get_instructions(code))


def _code_image(code: types.CodeType) -> str:
    """Return what a function does. Positions and file names are left out: they are no part of it."""
    constants = [_code_image(c) if isinstance(c, types.CodeType) else _image(c) for c in code.co_consts]
    return repr((code.co_code, constants, code.co_names, code.co_varnames, code.co_freevars, code.co_flags))
