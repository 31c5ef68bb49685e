"""The reference text: named files of pinned packages, the same on every machine.

Losses compare across machines only on the same text. Only names and digests are kept
here; the text is read from the installed packages and refused where it differs.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Iterator
from pathlib import Path

from scaling_lab.data.readers import Reader

#: The versions the files are from; they are those of the lock file.
VERSIONS: dict[str, str] = {
    "numpy": "2.4.6",
    "jax": "0.10.2",
    "flax": "0.12.8",
    "optax": "0.2.8",
    "orbax-checkpoint": "0.12.8",
    "einops": "0.8.2",
}

#: First 32 hex digits of SHA-256 of every file, line ends as LF.
DIGESTS: dict[str, dict[str, str]] = {
    "numpy": {
        "numpy/_core/_add_newdocs.py": "bdb68c6da2f3a1048cb2d6123afb6ede",
        "numpy/_core/einsumfunc.py": "b91287b000d50c68c3be44597f9d968d",
        "numpy/_core/fromnumeric.py": "6055d8e195cf7aaae417d23bda203cd3",
        "numpy/_core/numeric.py": "d75e4d3072e59b477cad20f088d964f6",
        "numpy/_core/shape_base.py": "1d6e897dfdb7edf2d71e8ed75254a6e7",
        "numpy/lib/_function_base_impl.py": "b2310fd26d09b566bc50c94be4d30328",
        "numpy/lib/_npyio_impl.py": "557dbdca775fdf05ab660f6694c5d251",
        "numpy/lib/_shape_base_impl.py": "c9858af506f79e40dae1a4fee13900a0",
        "numpy/linalg/_linalg.py": "e47d0e2aed21361291cd6651999a59e6",
        "numpy/ma/core.py": "9970fa92caa4f0c10ab51362b6347fe7",
        "numpy/ma/extras.py": "0089da9a60816d1bfae48d67d4bd416c",
        "numpy/polynomial/polynomial.py": "9da743f753387a41e92d56c6c5763307",
    },
    "jax": {
        "jax/_src/api.py": "e226da46d6064e0d0dcffd462443dc9b",
        "jax/_src/core.py": "7de7cb7870a8843e8f9b0522f92de391",
        "jax/_src/custom_derivatives.py": "d19cdd5856a1ff89645931d82b02584c",
        "jax/_src/interpreters/partial_eval.py": "4b313e696553901bc051f118d62de916",
        "jax/_src/lax/control_flow/loops.py": "7c0f180512a4c20b787786c3488625e6",
        "jax/_src/lax/lax.py": "aa44c9d0532e9b939d6b0e8d3fbe46fd",
        "jax/_src/lax/linalg.py": "d8411d732e3abee4b0d58fc22b418c1d",
        "jax/_src/lax/parallel.py": "797e837fb34e72e368c45354f9df72f7",
        "jax/_src/lax/slicing.py": "abdf83da039c1e82b3ee6d86ea85b2ab",
        "jax/_src/nn/functions.py": "fc5c5a22c4579ecb24de4961bc1dbbb2",
        "jax/_src/numpy/lax_numpy.py": "54ca38ec6f9ec52e6def532863d13fd8",
        "jax/_src/numpy/linalg.py": "337ee1d15974a037547a1664883686a3",
        "jax/_src/numpy/reductions.py": "e13cfed1e01d83fc57ade19aec5231cc",
        "jax/_src/numpy/ufuncs.py": "6cb03da4eef135ccdc23f8f00e264951",
        "jax/_src/pjit.py": "337a95777c1b079001319eefa299ce8a",
        "jax/_src/random/core.py": "b53275c080c32711602f548875f14702",
        "jax/_src/scipy/special.py": "017fa7e3b2ac85514c1e58b545aa475a",
        "jax/_src/shard_map.py": "7bc7922be4a820a59eef44a0dfe1b88c",
    },
    "flax": {
        "flax/linen/module.py": "90fa206bbefd9667840dd32b7cc0f4b2",
        "flax/linen/transforms.py": "d151bc37ec70fe67c130242325eaaf3a",
        "flax/nnx/graphlib.py": "56d7e2f59f656e09038b590a78df419a",
        "flax/nnx/variablelib.py": "3d95c7cbbef36cf388335731e3fca308",
    },
    "optax": {
        "optax/_src/alias.py": "c5a7491a95638f9f357cfea54bf887bb",
        "optax/_src/linesearch.py": "fee97618ece9faf4eaa0a3827d5e8321",
        "optax/_src/transform.py": "31a15cda85d5bdc59f6fb1ae50469bc4",
    },
    "orbax-checkpoint": {
        "orbax/checkpoint/checkpoint_manager.py": "f05ef3ef7d1acf3a4ba9d673fcaeaf23",
    },
    "einops": {
        "einops/einops.py": "be6c7921675efde3eeceb3c32d9655c3",
    },
}

_SHOWN_FAILURES = 5


def files() -> list[tuple[Path, Reader]]:
    """Every file of the ``reference`` source with its reader, in a fixed order.

    Raises:
      ValueError: a file is missing or differs; names the first few, how many there
        are, and the versions to install.
    """
    found: list[tuple[Path, Reader]] = []
    failures: list[str] = []
    wanting: list[str] = []
    for package, digests in DIGESTS.items():
        paths, problems = _checked(package, digests)
        found += [(path, unix_text) for path in paths]
        failures += problems
        if problems:
            wanting.append(f"{package}=={VERSIONS[package]}")
    if failures:
        rest = len(failures) - _SHOWN_FAILURES
        lines = failures[:_SHOWN_FAILURES] + [f"and {rest} more"] * (rest > 0)
        total = sum(len(digests) for digests in DIGESTS.values())
        raise ValueError(
            f"the reference data cannot be read: {len(failures)} of its {total} files "
            "are missing or differ:\n  " + "\n  ".join(lines) + "\n"
            f"install the versions they are from: pip install {' '.join(wanting)}\n"
            "or use other data, whose losses compare only with runs of the same digest"
        )
    return found


def unix_text(path: Path) -> Iterator[bytes]:
    """The file as one document, line ends as LF: wheels for Windows carry CRLF."""
    yield path.read_bytes().replace(b"\r\n", b"\n")


def _checked(package: str, digests: dict[str, str]) -> tuple[list[Path], list[str]]:
    """The paths of one package's files, and a line for each that is not as named."""
    try:
        installed = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return [], [f"{name}: {package} is not installed" for name in digests]
    paths, problems = [], []
    for name, wanted in digests.items():
        path = Path(str(installed.locate_file(name)))
        if not path.is_file():
            problems.append(f"{name}: not in {package} {installed.version} ({path})")
            continue
        found = hashlib.sha256(next(unix_text(path))).hexdigest()[: len(wanted)]
        if found != wanted:
            problems.append(
                f"{name}: found digest {found} ({package} {installed.version}), "
                f"wanted {wanted} ({package} {VERSIONS[package]})"
            )
        paths.append(path)
    return paths, problems
