"""Eight simulated devices, strict ranks, warnings are errors (see pyproject.toml)."""

import dataclasses
import importlib.util
import os
import sys
import tempfile
from pathlib import Path

import jaxlib.version

# Before JAX starts: with a compiler's library installed it would look for its devices.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# XLA's older emitters for CPUs compile what a test runs once in half of the time; a
# version that has them no more stops at the flag. XLA_FLAGS="" has the default ones.
if jaxlib.version.__version_info__ < (0, 11):
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")

import jax
import numpy as np
import pytest

from scaling_lab import cli, models
from scaling_lab.compile import cpu

cpu.simulate(8)
jax.config.update("jax_numpy_rank_promotion", "raise")


#: Names the folder of compiled programs in a session's environment.
COMPILED = "SCALING_LAB_TESTS_COMPILED"


def pytest_configure(config):
    """Programs that several tests compile are compiled once, by whichever worker."""
    if COMPILED not in os.environ:  # workers inherit it
        held = tempfile.TemporaryDirectory(prefix="compiled-")
        os.environ[COMPILED] = held.name
        config.add_cleanup(held.cleanup)
    jax.config.update("jax_compilation_cache_dir", os.environ[COMPILED])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


#: Marker of tests that need a compiler -> the module it comes in.
COMPILERS = {"tpu": "libtpu", "gpu": "jax_cuda13_plugin"}


def pytest_runtest_setup(item):
    """Skips what needs the compiler of a machine that is not here, where that lacks."""
    for kind, module in COMPILERS.items():
        if item.get_closest_marker(kind) and not importlib.util.find_spec(module):
            extra = f"pip install 'scaling_lab[{kind}-compile]'"
            pytest.skip(f"needs the {kind.upper()}'s compiler: {extra}")


#: Divisible by eight devices wherever a layout divides, and nothing more.
TINY = {"L": 2, "D": 64, "N": 8, "K": 4, "H": 8, "F": 128, "V": 256, "E": 8}


def tiny_model(family, **changes):
    """The smallest model of a family that every layout can divide over 8 devices."""
    toy = models.size(family, "toy")
    sizes = TINY if toy.K < toy.N else TINY | {"K": TINY["N"]}
    sizes = {letter: size for letter, size in sizes.items() if hasattr(toy, letter)}
    return dataclasses.replace(toy, **(sizes | changes))


def packed_batch(batch=8, length=32, vocabulary=256, seed=0):
    """Random tokens, two to four documents a row, no target across their borders."""
    random = np.random.default_rng(seed)
    tokens = random.integers(0, vocabulary, (batch, length + 1)).astype(np.int32)
    segments = np.zeros((batch, length), np.int32)
    positions = np.zeros((batch, length), np.int32)
    targets = tokens[:, 1:].copy()
    for row in range(batch):
        borders = random.choice(np.arange(1, length), 1 + row % 3, replace=False)
        for number, piece in enumerate(np.split(np.arange(length), np.sort(borders))):
            segments[row, piece] = number
            positions[row, piece] = np.arange(len(piece))
            targets[row, piece[-1]] = -1
    return {
        "tokens_BT": tokens[:, :-1],
        "targets_BT": targets,
        "positions_BT": positions,
        "segments_BT": segments,
    }


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of data beside the checkout, or $SCALING_LAB_SHARED."""
    beside = Path(__file__).parents[2] / "shared"
    folder = Path(os.environ.get("SCALING_LAB_SHARED") or beside)
    if not folder.is_dir():
        pytest.skip(f"needs {folder.name}/ beside the checkout, or $SCALING_LAB_SHARED")
    return folder


@pytest.fixture(scope="session")
def tiny():
    """`tiny_model`, for tests that cannot import this file."""
    return tiny_model


@pytest.fixture(scope="session")
def packed():
    """`packed_batch`, for tests that cannot import this file."""
    return packed_batch


@pytest.fixture(scope="module")
def quick_compiles():
    """LLVM optimises nothing: half the wait, and the same partitioned program."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session")
def batches():
    """Three packed batches of 8 sequences of 32 tokens."""
    return [packed_batch(seed=seed) for seed in range(3)]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A file of real enough text, for runs that must not depend on the machine's."""
    path = tmp_path_factory.mktemp("text") / "notes.txt"
    lines = [f"{n} squared is {n * n}, and its half {n / 2}.\n" for n in range(2500)]
    path.write_text("".join(lines))
    return path


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def call(monkeypatch, capfd, tmp_path):
    """Runs a command line in an empty folder; gives exit code, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SCALING_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(cli.warnings, "showwarning", cli.warnings.showwarning)

    def run(*words):
        words = words[0].split() if len(words) == 1 else words
        monkeypatch.setattr(sys, "argv", ["scaling-lab", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capfd.readouterr()
        return ended.value.code, out, err

    return run
