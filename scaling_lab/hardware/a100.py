"""A100 SXM, 80 GB: nodes of eight on NVLink 3 through NVSwitch. The 40 GB card is
another chip.

Source: jax-ml/scaling-book gpus.md at 1a55377a.
"""

from scaling_lab.hardware import Chip

CHIP = Chip(
    name="a100",
    vendor="NVIDIA",
    source="jax-ml/scaling-book gpus.md at 1a55377a",
    flops_per_second={"bfloat16": 3.12e14, "int8": 6.24e14},
    hbm_bytes=80_000_000_000,
    hbm_bytes_per_second=2.039e12,
    link_bytes_per_second=3e11,
    scale_up_chips=8,
    network_bytes_per_second=2.5e10,
    cores_per_chip=108,
    device_kinds=("NVIDIA A100-SXM4-80GB",),
    notes=("No float8. The network figure is the usual node of eight 200 Gb/s cards."),
)
