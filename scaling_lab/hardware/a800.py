"""A800 SXM, 80 GB: an A100 for export, with two thirds of its NVLink.

Source: Reuters, 7 November 2022, as confirmed by NVIDIA (400 GB/s for 600); the rest
as an A100.
"""

import dataclasses

from scaling_lab.hardware import a100

assert a100.CHIP.gpu is not None
CHIP = dataclasses.replace(
    a100.CHIP,
    name="a800",
    source=(
        "Reuters, 7 November 2022 (NVLink of 400 GB/s for 600, both ways); the rest: "
        f"{a100.CHIP.source}"
    ),
    link_bytes_per_second=2e11,
    device_kinds=("NVIDIA A800-SXM4-80GB",),
    aliases=("a800-80", "a800-80gb", "a800-sxm"),
    gpu=dataclasses.replace(a100.CHIP.gpu, name="NVIDIA A800-SXM4-80GB", links=8),
    notes="What is not its NVLink is taken from the A100. No float8.",
)
