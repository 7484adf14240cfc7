"""Classes out of a user's own file, and errors that say where in it they come from."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from dldw.errors import DldwError, UnknownNameError
from dldw.registry import unknown


def load_class(target: str, kind: str) -> type[Any]:
    """The class ``Name`` out of ``path/to/file.py:Name``.

    Args:
        target: Path and name.
        kind: ``task`` or ``method``, for the error's text.

    Raises:
        UnknownNameError: The file holds no class of that name; the text has those it holds, and the nearest.
        DldwError: The file cannot be found, or raises when it runs; the text has the line and the original error.
    """
    path, _, name = target.rpartition(":")
    module = load_module(path, f"{kind} {target}")
    classes = own_classes(module)
    if name not in classes:
        raise UnknownNameError(unknown(kind, name, classes, of=str(module.__file__)))
    return classes[name]


def own_classes(module: ModuleType) -> dict[str, type[Any]]:
    """The classes that ``module`` itself defines, by name."""
    return {k: v for k, v in vars(module).items() if isinstance(v, type) and v.__module__ == module.__name__}


def load_module(path: str, what: str) -> ModuleType:
    """The Python file ``path`` as a module; it runs once.

    Args:
        path: The file.
        what: What is wanted of it, for the error's text.

    Raises:
        DldwError: The file cannot be found, or raises when it runs; the text has the line and the original error.
    """
    file = Path(path).expanduser().resolve()
    if not file.is_file():
        raise DldwError(f"{what}: there is no file {file}. Give it as path/to/file.py:Name.")
    module_name = "dldw_user_" + hashlib.sha256(str(file).encode()).hexdigest()[:12]
    module = sys.modules.get(module_name)
    if module is None:
        spec = importlib.util.spec_from_file_location(module_name, file)
        if spec is None or spec.loader is None:
            raise DldwError(f"{what}: {file} is not a Python file. Its name must end in .py.")
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[module_name]
            at = f"{file}, line {error.lineno}" if isinstance(error, SyntaxError) else where(error, file)
            raise DldwError(f"{what} cannot be loaded: {at} raised {type(error).__name__}: {error}") from error
    return module


def where(error: BaseException, file: Path | None = None) -> str:
    """``file, line`` of the innermost frame of ``error`` in ``file``, by default in any that is not of a package."""
    frames = traceback.extract_tb(error.__traceback__)
    own = str(Path(__file__).resolve().parent.parent)
    if file is not None:
        chosen = [f for f in frames if f.filename == str(file)]
    else:
        chosen = [f for f in frames if not f.filename.startswith((own, "<")) and "site-packages" not in f.filename]
    frame = (chosen or list(frames))[-1]
    return f"{frame.filename}, line {frame.lineno},"


def fingerprint(target: str) -> str:
    """A short hash of the file in ``path/to/file.py:Name``: results of two versions of it must not be mixed."""
    return hashlib.sha256(Path(target.rpartition(":")[0]).expanduser().read_bytes()).hexdigest()[:12]
