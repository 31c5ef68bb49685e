"""Real text, tokenised once, served as resumable batches.

`resolve` completes a `DataConfig` with the digests of its text and tokenizer;
`load` gives the `Dataset` whose streams serve batch *i* as a function of (seed, i).
"""

from scaling_lab.data.config import DataConfig
from scaling_lab.data.dataset import Dataset, load, resolve
from scaling_lab.data.stream import Stream

__all__ = ["DataConfig", "Dataset", "Stream", "load", "resolve"]
