"""Does a calibration on half of a machine's runs predict the other half?

Run:     python -m experiments.cpu_calibration [--dry-run] [--json]
         scaling-lab calibrate runs/cpu_calibration --out mine.json
Takes:   about 6 minutes on 2 CPU cores, one device.
Expect:  calibrated on every second record, the others are predicted within 10 % in
         the median; the records of one such sweep are results/cpu_calibration.jsonl.
"""

import scaling_lab as lab
from scaling_lab.cli.sweep import main_of

_SAME = {"family": "llama", "target": "local", "layout": "data=1", "steps": 15}

CONFIGS = [
    *lab.grid(
        _SAME
        | {
            "size": "toy",
            "batch": (4, 8, 16, 32),
            "length": (64, 128, 256),
            "evaluate_batches": 0,
        },
        1,
    ),
    *lab.grid(
        _SAME
        | {
            "size": "33m",
            "layers": (2, 4),
            "batch": (1, 2, 4),
            "length": (64, 128),
            "evaluate_batches": 0,
        },
        1,
    ),
]


def main() -> None:
    main_of(CONFIGS, "runs/cpu_calibration")


if __name__ == "__main__":
    main()
