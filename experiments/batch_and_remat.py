"""How much memory does each remat policy buy, and does it buy a larger batch?

Run:     python -m experiments.batch_and_remat [--dry-run] [--json]
Takes:   about 3 minutes on 2 CPU cores, eight devices simulated.
Expect:  temporaries grow with the batch; full remat keeps one residual per layer and
         costs a third more FLOPs; keeping the attention outputs lies between. The loss
         depends on the batch and on nothing else.
"""

import scaling_lab as lab
from scaling_lab.cli.sweep import main_of

CONFIGS = lab.grid(
    {
        "family": "llama",
        "size": "toy",
        "target": "cpu:8",
        "layout": "fsdp",
        "batch": (8, 32),
        "length": 128,
        "steps": 10,
        "remat": ("none", "full", "save:attention/attend,ffn/down"),
        "learning_rate": 3e-3,
    }
)


def main() -> None:
    main_of(CONFIGS, "runs/batch_and_remat")


if __name__ == "__main__":
    main()
