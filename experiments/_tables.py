"""Tables that lie beside the project and are not part of it."""

import argparse
from pathlib import Path

SHARED = Path(__file__).resolve().parents[1] / "../shared/data"


def argument(parser: argparse.ArgumentParser) -> None:
    """``--data``, where the tables are."""
    parser.add_argument(
        "--data",
        type=Path,
        default=SHARED,
        help="folder of published_runs/ and step_times/",
    )


def folder(data: Path, *names: str) -> Path:
    """The folder, if it holds the tables.

    Raises:
      SystemExit: it does not, with what to say.
    """
    missing = [name for name in names if not (data / name).exists()]
    if missing:
        raise SystemExit(
            f"no {' and no '.join(missing)} in {data}; these tables are no part of the "
            "project: say where they are with --data FOLDER"
        )
    return data
