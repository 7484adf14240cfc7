"""What an installation promises: quick to import, few dependencies, and imports that point one way."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import dldw

SRC = Path(dldw.__file__).parent
FILES = sorted(SRC.rglob("*.py"))
OUTER = ("compare", "report", "tasks", "cli", "integrations", "finetune")
"""What is built on the methods, and may need the extras."""
CORE = [f for f in FILES if f.relative_to(SRC).parts[0].removesuffix(".py") not in (*OUTER, "__main__", "__init__")]


def name(file: Path) -> str:
    return str(file.relative_to(SRC))


def imports(file: Path) -> set[str]:
    """Every module that a file imports, also inside functions and for type checkers only."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def python(code: str) -> str:
    path = [str(SRC.parent), *sys.path]
    program = f"import sys; sys.path[:0] = {path!r}\n{code}"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()


def test_importing_dldw_imports_neither_torch_nor_numpy():
    heavy = python("import dldw; print([m for m in ('torch', 'numpy', 'sklearn', 'altair') if m in sys.modules])")
    assert heavy == "[]"


def test_the_sources_need_nothing_of_the_extras():
    code = """
import importlib.abc
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split('.')[0] in {'typer', 'rich', 'altair', 'vl_convert', 'jinja2', 'sklearn', 'optuna', 'gymnasium'}:
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import dldw
for name in dldw.__all__:
    getattr(dldw, name)
print(len(dldw.methods()))
"""
    assert int(python(code)) == len(dldw.methods())


def test_importing_dldw_adds_at_most_a_tenth_of_a_second_to_importing_torch():
    code = """
import time, torch
start = time.process_time()
import dldw
print(time.process_time() - start)
"""
    assert min(float(python(code)) for _ in range(2)) < 0.1


def test_every_public_name_resolves_and_is_imported_by_name_for_type_checkers():
    for public in dldw.__all__:
        assert getattr(dldw, public) is not None
        assert public in dir(dldw)
    tree = ast.parse((SRC / "__init__.py").read_text())
    checked = {
        alias.asname: node.module
        for block in ast.walk(tree)
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert checked == dldw._HOMES | dict.fromkeys(dldw._ROOMS, "dldw")


def test_version_is_that_of_the_project():
    project = tomllib.loads((SRC.parents[1] / "pyproject.toml").read_text())["project"]
    assert dldw.__version__ == project["version"]
    assert {d.split(">")[0] for d in project["dependencies"]} == {"torch", "numpy", "safetensors"}
    assert (SRC / "py.typed").exists()


@pytest.mark.parametrize("file", CORE, ids=name)
def test_core_imports_only_torch_numpy_and_safetensors(file):
    roots = {module.split(".")[0] for module in imports(file)}
    assert roots - set(sys.stdlib_module_names) <= {"dldw", "torch", "numpy", "safetensors"}


@pytest.mark.parametrize("file", CORE, ids=name)
def test_methods_never_import_what_is_built_on_them(file):
    outer = {f"dldw.{part}" for part in OUTER}
    assert not {m for m in imports(file) if any(m == o or m.startswith(f"{o}.") for o in outer)}


@pytest.mark.parametrize("file", FILES, ids=name)
def test_nothing_imports_an_integration_and_none_imports_the_page_or_the_command_line(file):
    home, found = file.relative_to(SRC).parts, imports(file)
    if home[0] == "integrations":
        assert not {m for m in found if m.startswith(("dldw.report", "dldw.cli"))}
        assert len(home) == 2 or not {m for m in found if m.startswith("dldw.integrations")} - {
            m for m in found if m.startswith(f"dldw.integrations.{home[1]}")
        }, "one library's integration needs no other"
    else:
        assert not {m for m in found if m.startswith("dldw.integrations")}


@pytest.mark.parametrize("file", CORE, ids=name)
def test_the_library_neither_prints_nor_pickles_nor_asserts_nor_seeds(file):
    tree = ast.parse(file.read_text())
    calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert not calls & {"print", "torch.manual_seed", "torch.save", "torch.load", "torch.seed", "np.random.seed"}
    assert "pickle" not in imports(file)
    assert not any(isinstance(node, ast.Assert) for node in ast.walk(tree)), "user errors are raised, not asserted"
    assert not any(isinstance(node, ast.Attribute) and node.attr == "data" for node in ast.walk(tree)), ".data"


def test_registry_names_classes_that_exist():
    from dldw.registry import METHODS

    for method, home in METHODS.items():
        module, _, attribute = home.partition(":")
        assert getattr(importlib.import_module(module), attribute).card.summary, method


@pytest.mark.parametrize("method", list(dldw.methods()))
def test_a_constructor_has_at_most_eight_arguments_keyword_only_after_the_first(method):
    import inspect

    parameters = list(inspect.signature(dldw.methods()[method].factory).parameters.values())
    assert len(parameters) <= 8
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters[1:])
    assert "generator" in {p.name for p in parameters}


def test_no_public_name_of_the_modules_is_hidden_by_a_file_of_the_same_name():
    import dldw.nn

    assert not {file.stem for file in (SRC / "nn").glob("*.py")} & set(dldw.nn.__all__)
    for public in dldw.nn.__all__:
        assert getattr(dldw.nn, public) is not None
        assert public in dir(dldw.nn)
