"""The one description of a run: asked in words, held as values, checked once."""

from scaling_lab.config import mup
from scaling_lab.config.ask import configure, with_data
from scaling_lab.config.run import RunConfig
from scaling_lab.config.validate import PRECISIONS, check_remat, together, validate

__all__ = [
    "PRECISIONS",
    "RunConfig",
    "check_remat",
    "configure",
    "mup",
    "together",
    "validate",
    "with_data",
]
