"""A bridge from a string to an object, and nothing more: fvcore's Registry with helpful errors."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import threading
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeVar, overload

from fvcore.common.registry import Registry as FvcoreRegistry

from registry.errors import NameTaken, UnknownName, UserError, closest

T = TypeVar("T", bound=Callable[..., Any])


class Registry(FvcoreRegistry):
    """Maps names to functions and classes of one kind; the contract of that kind is ``contract``.

    ``@R.register()``, ``@R.register("name")`` and ``@R.register`` all work, as does ``R.register(fn)``.
    A member of a family is looked up as ``"family:member"``: ``get("torchvision:resnet18")`` is the
    object registered as ``torchvision`` with ``"resnet18"`` as its first argument.

    Args:
        name: what messages call this registry, for example ``"BACKBONES"``.
        contract: what a registered object must be; becomes the registry's docstring.
        packages: packages whose modules register the built-in objects. They are imported at the first
            look-up, so that no result depends on the order of the caller's imports.
        kind: ``"factory"`` if :func:`registry.build` calls the object to get the plug-in, ``"function"``
            if the object itself is the plug-in and ``build`` only binds its options.
        adapt: what is kept of a registered object: ``adapt(object, **facts)``; the object itself by default.
    """

    def __init__(
        self,
        name: str,
        contract: str = "",
        packages: tuple[str, ...] = (),
        kind: Literal["factory", "function"] = "factory",
        adapt: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(name)
        self.kind = kind
        self._adapt = adapt
        self._obj_map: dict[str, Any] = {}
        self._origin: dict[str, str] = {}
        self._facts: dict[str, dict[str, Any]] = {}
        self._packages = packages
        self._discovered = not packages
        self._lock = threading.RLock()
        if contract:
            self.__doc__ = contract

    @property
    def name(self) -> str:
        return self._name

    @overload
    def register(self, obj: T) -> T: ...
    @overload
    def register(self, obj: str | None = None, **facts: Any) -> Callable[[T], T]: ...

    def register(self, obj: Any = None, **facts: Any) -> Any:
        """Register a function or class under its own name or a given one; usable with or without parentheses.

        Args:
            obj: the object, or its name.
            facts: what lists may say of it (``paper="Hinton et al., arXiv 1503.02531", year=2015``), and what the
                contract of the kind asks for.

        Raises:
            NameTaken: the name is in use; the message names both places.
            TypeError: what was given is neither a name nor a function or class.
        """

        def decorate(target: T) -> T:
            name = obj if isinstance(obj, str) and obj else _own_name(target)
            self._add(name, self.adapt(target, **facts))
            self._facts[name] = facts
            return target

        if obj is None or isinstance(obj, str):
            return decorate
        if not callable(obj):
            raise TypeError(f"{self._name}.register takes a name, a function or a class, not {obj!r}")
        return decorate(obj)

    def adapt(self, obj: Any, **facts: Any) -> Any:
        """What is kept of an object that is registered with these facts."""
        return obj if self._adapt is None else self._adapt(obj, **facts)

    def _add(self, name: str, obj: Any) -> None:
        if not callable(obj):
            raise TypeError(f"{self._name}: {name!r} must be a function or a class, not {obj!r}")
        # Built-in names come first, so that a clash is reported at the newcomer.
        if not f"{getattr(obj, '__module__', '')}.".startswith(tuple(f"{package}." for package in self._packages)):
            self._discover()
        origin = _place(obj)
        if name in self._obj_map:
            raise NameTaken(
                f"{self._name}: the name {name!r} is taken: first registered at {self._origin[name]}, "
                f"again at {origin}; give one of them another name"
            )
        self._obj_map[name] = obj
        self._origin[name] = origin

    def _discover(self) -> None:
        if self._discovered:
            return
        with self._lock:
            if self._discovered:
                return
            self._discovered = True
            try:
                for package_name in self._packages:
                    package = importlib.import_module(package_name)
                    for module in pkgutil.iter_modules(package.__path__, package_name + "."):
                        importlib.import_module(module.name)
            except BaseException:
                self._discovered = False
                raise

    def get(self, name: str) -> Any:
        """The object registered as ``name``.

        Raises:
            UnknownName: no such name; the message has the closest and all known names.
        """
        self._discover()
        if (found := self._find(name)) is not None:
            return found
        from registry.plugins import load_entry_points

        load_entry_points()
        if (found := self._find(name)) is not None:
            return found
        known = self.names()
        hint = closest(name, known, n=3, cutoff=0.5)
        raise UnknownName(f"{self._name}: unknown name {name!r}{hint} Known: {', '.join(known) or '(none)'}")

    def _find(self, name: str) -> Any:
        if name in self._obj_map:
            return self._obj_map[name]
        family, colon, member = name.partition(":")
        if colon and member and family in self._obj_map:
            return functools.partial(self._obj_map[family], member)
        return None

    def names(self) -> list[str]:
        """All known names, sorted."""
        self._discover()
        return sorted(self._obj_map)

    def origin(self, name: str) -> str:
        """Where ``name`` was registered, as ``file:line``."""
        self.get(name)
        return self._origin.get(name, self._origin.get(name.partition(":")[0], "?"))

    def facts(self, name: str) -> dict[str, Any]:
        """What was said of ``name`` when it was registered."""
        self.get(name)
        return dict(self._facts.get(name, {}))

    def summary(self, name: str) -> str:
        """The first line of the object's docstring."""
        obj = self.get(name)
        doc = inspect.getdoc(inspect.unwrap(obj.func if isinstance(obj, functools.partial) else obj))
        return doc.splitlines()[0] if doc else ""

    def __contains__(self, name: object) -> bool:
        self._discover()
        return name in self._obj_map

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        self._discover()
        return iter(sorted(self._obj_map.items()))

    def __len__(self) -> int:
        self._discover()
        return len(self._obj_map)

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"<Registry {self._name}: {', '.join(self.names())}>"

    def _snapshot(self) -> tuple[dict[str, Any], dict[str, str]]:
        # Discovery is done once: a snapshot from before it would lose the built-in names when it is restored.
        self._discover()
        return dict(self._obj_map), dict(self._origin)

    def _restore(self, state: tuple[dict[str, Any], dict[str, str]]) -> None:
        self._obj_map, self._origin = dict(state[0]), dict(state[1])


def _own_name(obj: Any) -> str:
    name = getattr(obj, "__name__", None)
    if not name or name == "<lambda>":
        raise UserError(f'{obj!r} has no name of its own; use register("name")')
    return str(name)


def _place(obj: Any) -> str:
    target = inspect.unwrap(obj)
    try:
        return f"{inspect.getsourcefile(target)}:{inspect.getsourcelines(target)[1]}"
    except (TypeError, OSError):
        return str(getattr(target, "__module__", "?"))
