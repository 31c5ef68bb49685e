"""Step-time tables of vTrain (Bang et al. 2024) as rows of published runs."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

#: Megatron's GPT-2 vocabulary, padded as Megatron does at these tensor sizes.
_VOCAB = 51_200


def vtrain_table(path: str | Path) -> pd.DataFrame:
    """A table of vTrain's artifact in the columns of published runs.

    GPT models on nodes of eight A100 80 GB, with Megatron-LM: float16, 1F1B, one of
    the two tables on several nodes (``vtrain_multi``) with recomputation.

    Raises:
      ValueError: a column is missing.
    """
    raw = pd.read_csv(path)
    needed = ("# GPUs", "global batch", "micro batch", "hidden size", "# layers")
    missing = [name for name in needed if name not in raw.columns]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}: no table of vTrain's")
    width, layers = raw["hidden size"], raw["# layers"]
    several = max(raw["# GPUs"].tolist()) > 8
    return pd.DataFrame(
        {
            "run": [f"{Path(path).stem}-{row}" for row in range(len(raw))],
            "source": "vTrain artifact",
            "framework": "Megatron-LM (2022)",
            "model": [f"GPT {d}x{n}" for d, n in zip(width, layers, strict=True)],
            "params": 12 * layers * width**2 + _VOCAB * width,
            "layers": layers,
            "d_model": width,
            "n_heads": raw["attention heads"],
            "kv_heads": raw["attention heads"],
            "d_ff": 4 * width,
            "mlp": "gelu",
            "vocab": _VOCAB,
            "seq_len": raw["sequence length"],
            "global_batch_tokens": raw["global batch"] * raw["sequence length"],
            "microbatch_seqs": raw["micro batch"],
            "hardware": "a100-80gb",
            "chips": raw["# GPUs"],
            "data": raw["data parallelism"],
            "zero_stage": 0,
            "tensor": raw["tensor parallelism"],
            "stage": raw["pipeline parallelism"],
            "schedule": "1F1B",
            "precision": "fp16",
            "remat": "full" if several else "none",
            "step_seconds": raw["iteration time (ms)"] / 1e3,
        }
    )
