"""H200 SXM: nodes of eight on NVLink 4 through NVSwitch.

Source: jax-ml/scaling-book gpus.md at 1a55377a.
"""

from scaling_lab.hardware import Chip

CHIP = Chip(
    name="h200",
    vendor="NVIDIA",
    source="jax-ml/scaling-book gpus.md at 1a55377a",
    flops_per_second={"bfloat16": 9.89e14, "float8": 1.979e15, "int8": 1.979e15},
    hbm_bytes=141_000_000_000,
    hbm_bytes_per_second=4.8e12,
    link_bytes_per_second=4.5e11,
    scale_up_chips=8,
    network_bytes_per_second=5e10,
    cores_per_chip=132,
    device_kinds=("NVIDIA H200",),
    notes="An H100 with more and faster memory.",
)
