"""Nine rooms: one-way imports, ceilings on lines, public names only between rooms."""

import ast
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "lensml"
ROOMS = (
    "photometry lensing simulation network training streaming evaluation plotting experiments"
).split()
ASIDE = {"training", "streaming", "evaluation"}  # none of these three knows another
GROUND_FLOOR = ["__init__", "__main__", "_exports", "cli", "exits", "limits", "paths", "seeds"]
# Four modules are longer than the 400 lines of all others: the compiled joint fits, their GPU
# kernels, the simulator with its shards, and the reader of sets.
MAX_PACKAGE, MAX_ROOM, MAX_MODULE, MAX_MODULES = 15_900, 2_300, 400, 9
LONGER = {"lensing.joint_fits": 460, "lensing._triton_fits": 660, "simulation.simulator": 445}
LONGER |= {"simulation.lightcurves": 430}
KERNELS = {"_triton_fits", "_triton_inputs"}  # called by those of rooms above, and compiled alone
ONLY = {  # library -> where it may be imported
    "VBMicrolensing": {"lensing.magnification"},
    "matplotlib": {"plotting", "experiments"},
    "seaborn": {"plotting", "experiments"},
    "papermill": {"experiments"},
    "IPython": {"experiments"},
    "sphinx": {"experiments"},
    "confluent_kafka": {"streaming.brokers"},
    "fastavro": {"streaming.brokers", "streaming.packets"},
    "torch.nn": {"network", "training", "streaming"},
    # Nothing goes out to a network but to the broker that a user names.
    **dict.fromkeys(("urllib.request", "http", "requests", "httpx", "ftplib", "smtplib"), set()),
    "socket.socket": set(),
}


@cache
def sources() -> dict[str, str]:
    """Text of every module, by its dotted name inside the package."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path.read_text()
    return found


@cache
def imports(module: str) -> frozenset[str]:
    """Dotted names that a module imports, anywhere in it; `from a import b` gives `a.b`."""
    found = set()
    for node in ast.walk(ast.parse(sources()[module])):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def room_of(module: str) -> str | None:
    """The room a module lies in; None on the ground floor."""
    first = module.split(".")[0]
    return first if first in ROOMS else None


def modules_of(room: str) -> list[str]:
    """Modules of a room in import order, as its `__init__` lists them."""
    calls = [n for n in ast.walk(ast.parse(sources()[room])) if isinstance(n, ast.Call)]
    (listed,) = (call for call in calls if getattr(call.func, "id", "") == "exports")
    return [keyword.arg for keyword in listed.keywords]


def own_names(module: str) -> set[tuple[str, str]]:
    """(room or ground-floor module, next part) of all that is imported from the package."""
    parts = [name.split(".") for name in imports(module) if name.startswith("lensml.")]
    return {(p[1], p[2] if len(p) > 2 else "") for p in parts}


MODULES = sorted(m for m in sources() if room_of(m) and "." in m)


def test_only_few_modules_lie_outside_the_rooms():
    assert sorted(m for m in sources() if not room_of(m)) == sorted(GROUND_FLOOR)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_lists_its_modules(room):
    inside = {m.split(".")[1] for m in MODULES if room_of(m) == room}
    assert set(modules_of(room)) == inside and len(inside) <= MAX_MODULES


@pytest.mark.parametrize("room", ROOMS)
def test_public_names_of_a_room_exist_and_differ_from_its_modules(room):
    package = import_module(f"lensml.{room}")
    assert not set(package.__all__) & set(modules_of(room))
    for name in package.__all__:
        assert not name.startswith("_")
        getattr(package, name)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module):
    room, name = module.split(".")
    above = set(ROOMS[: ROOMS.index(room)]) - (ASIDE if room in ASIDE else set())
    earlier = modules_of(room)[: modules_of(room).index(name)]
    for other, part in own_names(module):
        if other == room:
            assert part in earlier, f"{module} imports {part}, which does not come before it"
        else:
            ground = {"exits", "limits", "paths", "seeds", "_exports"}
            assert other in above | ground, f"{module} imports {other}"


def outsiders() -> list[tuple[str, str]]:
    """(file, code) of what uses the package from outside: chapters, benchmarks, scripts, tests."""
    import json

    found = []
    for pattern in ("benchmarks/**/*.py", "book/scripts/*.py", "tests/**/*.py"):
        found += [(str(p.relative_to(ROOT)), p.read_text()) for p in ROOT.glob(pattern)]
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text())["cells"]
        code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
        found.append((str(path.relative_to(ROOT)), "\n".join(code)))
    return sorted(found)


@pytest.mark.parametrize(("file", "code"), outsiders(), ids=lambda x: x if len(x) < 60 else "")
def test_code_outside_the_package_uses_public_names(file, code):
    tested = Path(file).parts[1] if Path(file).parts[0] == "tests" else None
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lensml."):
            room, *module = node.module.split(".")[1:]
            if room in ROOMS and room != tested:
                assert not module, f"{file}: from {node.module} import ..., not from the room"
                shown = {*KERNELS, *import_module(node.module).__all__}
                assert {alias.name for alias in node.names} <= shown, f"{file}: {room}"


@pytest.mark.parametrize("module", MODULES)
def test_rooms_import_public_names_of_other_rooms(module):
    for other, part in own_names(module):
        if other in ROOMS and other != room_of(module):
            shown = ["", *KERNELS, *import_module(f"lensml.{other}").__all__]  # "": the room
            assert part in shown, f"{module} imports {other}.{part}"


@pytest.mark.parametrize("library", ONLY)
def test_heavy_libraries_are_imported_in_few_places(library):
    users = {m for m in sources() if any(f"{n}.".startswith(f"{library}.") for n in imports(m))}
    assert {m for m in users if not {m, m.split(".")[0]} & ONLY[library]} == set()


def test_modules_rooms_and_package_stay_below_their_ceilings():
    lines = {m: text.count("\n") for m, text in sources().items()}
    assert {m: n for m, n in lines.items() if n > LONGER.get(m, MAX_MODULE)} == {}
    rooms = {r: sum(n for m, n in lines.items() if room_of(m) == r) for r in ROOMS}
    assert {r: n for r, n in rooms.items() if n > MAX_ROOM} == {}
    assert sum(lines.values()) <= MAX_PACKAGE
