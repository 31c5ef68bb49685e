"""The house: who may import whom, where mechanisms live, how long things are."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "scaling_lab"

#: Imports point down only. Rooms on one floor are strangers.
FLOORS = {
    # An experiment is a sweep with its command line, so it stands above the latter.
    8: ("experiments", "notebooks"),
    7: ("cli",),
    6: ("sweep", "plan", "launch"),
    # What is saved is a train state.
    5: ("measure", "compile", "checkpoint", "interop", "serve"),
    # What is predicted is a config.
    4: ("train", "cost"),
    3: ("config",),
    2: ("layouts", "models", "compress", "data", "optimizers"),
    1: ("parallel", "arrays"),
    0: ("dims", "names", "record", "hardware", "secure"),
}
FLOOR = {room: floor for floor, rooms in FLOORS.items() for room in rooms}
#: A wing beside the house: it opens on a laptop without jax.
STUDIES = "studies"
STUDIES_MAY = {"record", STUDIES}
#: The front door is above everything; whoever lives on top may come in by it.
FRONT_DOOR = "scaling_lab"
TOP = max(FLOORS)
HEAVY = {"jax", "jaxlib", "flax", "optax", "orbax"}

FILE_LINES, FUNCTION_LINES, ARGUMENTS = 300, 60, 8


def sources():
    folders = [PACKAGE, ROOT / "experiments"]
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


def name_of(path):
    return str(path.relative_to(ROOT))


def room_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[0] != "scaling_lab":
        return parts[0]
    return FRONT_DOOR if parts[1] == "__init__" else parts[1]


def imported(tree):
    """Every module a file imports, at any depth, as dotted names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative import; write the whole name"
            if node.module == "scaling_lab":
                yield from (f"scaling_lab.{alias.name}" for alias in node.names)
            else:
                yield node.module


def rooms_imported(tree):
    """The rooms of this package that a file imports; the bare package is the door."""
    for name in imported(tree):
        first, _, rest = name.partition(".")
        if first == "scaling_lab":
            yield rest.partition(".")[0] or FRONT_DOOR
        elif first in ("experiments", "notebooks"):
            yield first


def wrong_imports(room, tree):
    """What a file of `room` may not import, with why."""
    if room == FRONT_DOOR:
        return []
    found = []
    for other in sorted(set(rooms_imported(tree)) - {room}):
        if room == STUDIES:
            if other not in STUDIES_MAY:
                found.append(f"studies imports {other}; it may import record alone")
        elif other == STUDIES:
            if FLOOR[room] < 5:
                found.append(f"{room} imports studies, which reads what runs wrote")
        elif other == FRONT_DOOR:
            if FLOOR[room] < TOP - 1:
                found.append(f"{room} comes in by the front door, which is above it")
        elif other not in FLOOR:
            found.append(f"{room} imports {other}, which is on no floor")
        elif FLOOR[other] >= FLOOR[room]:
            found.append(
                f"{room} (floor {FLOOR[room]}) imports {other} (floor {FLOOR[other]})"
            )
    return found


def parsed(path):
    return ast.parse(path.read_text("utf-8"))


@pytest.mark.parametrize("path", sources(), ids=name_of)
def test_imports_point_down(path):
    room = room_of(path)
    assert room in FLOOR or room in (STUDIES, FRONT_DOOR), f"{room} is on no floor"
    assert not wrong_imports(room, parsed(path))


def test_studies_opens_without_jax():
    for path in (PACKAGE / "studies").rglob("*.py"):
        tops = {name.partition(".")[0] for name in imported(parsed(path))}
        assert not tops & HEAVY, name_of(path)


@pytest.mark.parametrize("room", ["dims", "record", "hardware", "secure"])
def test_the_ground_floor_opens_without_jax(room):
    paths = [path for path in sources() if room_of(path) == room]
    for path in paths:
        tops = {name.partition(".")[0] for name in imported(parsed(path))}
        assert not tops & HEAVY, name_of(path)


@pytest.mark.parametrize(
    ("room", "line", "wrong"),
    [
        ("models", "from scaling_lab.layouts import Layout", True),
        ("layouts", "import scaling_lab.models.llama", True),
        ("layouts", "from scaling_lab import models", True),
        ("layouts", "def f():\n    from scaling_lab import config", True),
        ("train", "from scaling_lab import checkpoint", True),
        ("train", "from scaling_lab import scaling", True),
        ("train", "import scaling_lab", True),
        ("experiments", "import scaling_lab as lab", False),
        ("cost", "from scaling_lab import config", False),
        ("config", "from scaling_lab import cost", True),
        ("train", "from scaling_lab import config, layouts, train", False),
        ("studies", "from scaling_lab import record", False),
        ("studies", "from scaling_lab import hardware", True),
        ("cli", "from scaling_lab import studies", False),
        ("train", "from scaling_lab import studies", True),
        ("experiments", "from experiments import other", False),
        ("cli", "from experiments import other", True),
        ("scaling_lab", "from scaling_lab import cli", False),
    ],
)
def test_the_table_tells_right_from_wrong(room, line, wrong):
    assert bool(wrong_imports(room, ast.parse(line))) == wrong


def mentions(tree, word):
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr == word:
            return True
        if isinstance(node, ast.Name) and node.id == word:
            return True
        if isinstance(node, ast.ImportFrom | ast.Import):
            if any(word in alias.name for alias in node.names):
                return True
            if word in str(getattr(node, "module", "")):
                return True
    return False


def test_shard_map_lives_in_parallel_alone():
    homes = {room_of(path) for path in sources() if mentions(parsed(path), "shard_map")}
    assert homes == {"parallel"}


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("from jax import shard_map", True),
        ("from jax.experimental.shard_map import shard_map as s", True),
        ("import jax.experimental.shard_map", True),
        ("y = jax.shard_map(f)", True),
        ("text = 'shard_map'", False),
    ],
)
def test_shard_map_is_seen(line, found):
    assert mentions(ast.parse(line), "shard_map") == found


def test_families_name_no_axis_and_no_sharding():
    words = ("PartitionSpec", "NamedSharding", "Mesh", "with_sharding_constraint")
    for path in (PACKAGE / "models").glob("*.py"):
        assert not [word for word in words if mentions(parsed(path), word)], path.name


# --- Small


@pytest.mark.parametrize("path", sources(), ids=name_of)
def test_small(path):
    text = path.read_text("utf-8")
    lines = len(text.splitlines())
    assert lines <= FILE_LINES, f"{lines} lines; divide the file"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            length = node.end_lineno - node.lineno + 1
            assert length <= FUNCTION_LINES, f"{node.name}: {length} lines"
            taken = len(arguments(node))
            # A command's arguments are its options, and there are as many as it takes.
            most = 2 * ARGUMENTS if room_of(path) == "cli" else ARGUMENTS
            assert taken <= most, f"{node.name}: {taken} arguments"


def arguments(node):
    """A function's arguments, without the object it is a method of."""
    spec = node.args
    named = [a.arg for a in (*spec.posonlyargs, *spec.args, *spec.kwonlyargs)]
    extra = [a.arg for a in (spec.vararg, spec.kwarg) if a is not None]
    return [name for name in named + extra if name not in ("self", "cls")]


def test_no_drawer_for_leftovers():
    drawers = {"utils", "util", "helpers", "misc", "common"}
    assert not [name_of(path) for path in sources() if path.stem in drawers]
