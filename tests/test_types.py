"""Public signatures are whole: a wheel carries them to type checkers, with stubs of its rooms."""

import inspect
import runpy
import typing
from importlib import import_module
from pathlib import Path
from unittest.mock import patch

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ["lensml", *(f"lensml.{p.parent.name}" for p in ROOT.glob("lensml/*/__init__.py"))]


def signatures(name: str) -> list[tuple[str, typing.Callable]]:
    """Public functions of a package, and public methods of its classes; not what numba compiles."""
    package, found = import_module(name), []
    for public in package.__all__:
        thing = getattr(package, public)
        if inspect.isfunction(thing):
            found.append((public, thing))
        elif inspect.isclass(thing) and thing.__module__.startswith("lensml."):
            methods = vars(thing).items()
            methods = [(m, getattr(f, "__func__", getattr(f, "fget", f))) for m, f in methods]
            found += [
                (f"{public}.{m}", f)
                for m, f in methods
                if inspect.isfunction(f)
                and f.__module__ == thing.__module__
                and (not m.startswith("_") or m == "__init__")
            ]
    return found


@pytest.mark.parametrize("name", PACKAGES)
def test_public_functions_say_the_type_of_everything(name):
    found = signatures(name)
    assert found
    for public, function in found:
        signature = inspect.signature(function)
        bare = [
            p.name
            for p in signature.parameters.values()
            if p.annotation is p.empty and p.name not in ("self", "cls")
        ]
        bare += ["return"] * (signature.return_annotation is signature.empty)
        assert not bare, f"{name}.{public}: {', '.join(bare)}"


@pytest.mark.parametrize("name", PACKAGES)
def test_a_stub_names_what_a_package_imports_on_first_use(name):
    with patch("setuptools.setup"):
        stub = runpy.run_path(str(ROOT / "setup.py"))["stub"]
    init = Path(import_module(name).__file__)
    namespace: dict = {}
    exec(stub(init, name), namespace)  # its imports are those of a type checker
    assert namespace["__all__"] == import_module(name).__all__
    assert all(namespace[x] is getattr(import_module(name), x) for x in namespace["__all__"])
