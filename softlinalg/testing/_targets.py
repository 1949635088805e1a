"""Functions by name: `module:function` or `file.py:function`."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from softlinalg.errors import ParameterError

__all__ = ["guess_backend", "load"]


def load(name: str, *, folder: Path | None = None) -> Callable[..., Any]:
    """The function that a name such as "numpy:linalg.pinv" or "my_code.py:my_pinv" stands for.

    Parameters
    ----------
    name : str
        A module, or a file that ends in .py, then a colon, then a name in it, with dots where it lies deeper. Importing it
        runs its code, as every import does.
    folder : Path, optional
        Where modules are looked for first. Default: the current folder.

    Returns
    -------
    callable

    Raises
    ------
    ParameterError
        No colon, no such module, file or name, an error on import, or not callable.
    """
    place, colon, attribute = name.rpartition(":")
    is_file = place.endswith(".py")
    if not colon or not place or not attribute or not (is_file or all(part.isidentifier() for part in place.split("."))):
        message = f"check: target must read MODULE:FUNCTION or FILE.py:FUNCTION; got {name!r}. Write, say, numpy:linalg.pinv."
        raise ParameterError(message)
    folder = (Path.cwd() if folder is None else folder).resolve()
    found: Any = _from_file(folder / place) if is_file else _from_module(place, folder)
    for part in attribute.split("."):
        found = _attribute(found, part, name)
    if not callable(found):
        message = f"check: target must be callable; got {name!r}, which is of type {type(found).__name__}. Name a function."
        raise ParameterError(message)
    return found  # type: ignore[no-any-return]


def guess_backend(name: str) -> str:
    """Whose arrays a function probably takes: those of the library that it comes from, NumPy's otherwise."""
    top = name.rpartition(":")[0].partition(".")[0]
    return {"torch": "torch", "jax": "jax", "cupy": "cupy", "array_api_strict": "array-api-strict"}.get(top, "numpy")


def _attribute(found: Any, part: str, name: str) -> Any:
    try:
        return getattr(found, part)
    except AttributeError as error:
        if isinstance(found, ModuleType):  # numpy:linalg.pinv, where linalg may be a module that is not imported yet
            try:
                return importlib.import_module(f"{found.__name__}.{part}")
            except ImportError:
                pass
        similar = difflib.get_close_matches(part, dir(found), n=1)
        remedy = f"Did you mean {similar[0]!r}?" if similar else "Look at its spelling."
        message = f"check: target must exist; got {name!r}, where {part!r} is missing. {remedy}"
        raise ParameterError(message) from error


def _from_module(module: str, folder: Path) -> ModuleType:
    added = str(folder)
    sys.path.insert(0, added)  # as `python -m` does; a command's own folder is what stands first otherwise
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        own = error.name is not None and (module == error.name or module.startswith(f"{error.name}."))
        fact = (
            f"{module!r}, which is not installed and not in {folder}"
            if own
            else f"{module!r}, which needs {error.name!r}, which is missing"
        )
        message = f"check: module must be importable; got {fact}. Install it, or run this in its folder."
        raise ParameterError(message) from error
    except (Exception, SystemExit) as error:
        raise _import_failed(module, error) from error
    finally:
        if added in sys.path:
            sys.path.remove(added)


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        message = f"check: file must exist; got {path}, which does not. Look at its name."
        raise ParameterError(message)
    name = f"_softlinalg_checked_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # its name ends in .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and the like look themselves up there
    sys.path.insert(0, str(path.parent))  # it may import its neighbours
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise _import_failed(str(path), error) from error
    finally:
        if str(path.parent) in sys.path:
            sys.path.remove(str(path.parent))
    return module


def _import_failed(what: str, error: BaseException) -> ParameterError:
    words = " ".join(str(error).split())[:160]
    message = f"check: module must be importable; got {type(error).__name__}: {words} on importing {what}. Mend that first."
    return ParameterError(message)
