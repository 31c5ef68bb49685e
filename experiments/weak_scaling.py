"""With a fixed batch per device, what grows as devices are added?

Run:     python -m experiments.weak_scaling [--dry-run] [--json]
Takes:   about 3 minutes on 2 CPU cores, devices simulated.
Expect:  under fsdp, parameter and optimizer bytes of one device fall as 1/n and the
         bytes it sends stay nearly the same, whatever n; under ddp its memory does not
         fall at all. Simulated devices share two cores, so their step time grows by
         construction and says nothing.
"""

import scaling_lab as lab
from scaling_lab.cli.sweep import main_of

CONFIGS = [
    config
    for devices in (1, 2, 4, 8)
    for config in lab.grid(
        {
            "family": "llama",
            "size": "toy",
            "target": f"cpu:{devices}",
            "layout": ("fsdp", "ddp"),
            "batch": 2 * devices,
            "length": 128,
            "steps": 10,
            "learning_rate": 3e-3,
        }
    )
]


def main() -> None:
    main_of(CONFIGS, "runs/weak_scaling")


if __name__ == "__main__":
    main()
