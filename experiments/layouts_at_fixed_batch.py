"""What does each layout cost one small Llama on eight devices at a fixed global batch?

Run:     python -m experiments.layouts_at_fixed_batch [--dry-run] [--json]
Takes:   about 2 minutes on 2 CPU cores, eight devices simulated.
Expect:  the same loss to rounding under every layout; ddp holds everything and moves
         gradients alone; zero1 divides the optimizer state; fsdp divides everything and
         gathers weights twice; tensor moves activations instead. Throughput of
         simulated devices ranks nothing.
"""

import scaling_lab as lab
from scaling_lab.cli.sweep import main_of

LAYOUTS = (
    "ddp",
    "zero1",
    "fsdp",
    "hsdp",
    "tensor=8+sequence",
    "fsdp=4,tensor=2",
)
CONFIGS = lab.grid(
    {
        "family": "llama",
        "size": "toy",
        "target": "cpu:8",
        "layout": LAYOUTS,
        "batch": 16,
        "length": 128,
        "steps": 20,
        "learning_rate": 3e-3,
    }
)


def main() -> None:
    main_of(CONFIGS, "runs/layouts_at_fixed_batch")


if __name__ == "__main__":
    main()
