"""GB200 NVL72, one GPU: domains of 72 GPUs on NVLink 5; a topology is domains x GPUs
in a domain.

Source: jax-ml/scaling-book gpus.md at 1a55377a (network); NVIDIA GB200 data sheet
(peaks).
"""

from scaling_lab.hardware import Chip

CHIP = Chip(
    name="gb200",
    vendor="NVIDIA",
    source=(
        "jax-ml/scaling-book gpus.md at 1a55377a (network); NVIDIA GB200 "
        "data sheet (peaks)"
    ),
    flops_per_second={"bfloat16": 2.5e15, "float8": 5e15, "int8": 5e15, "float4": 1e16},
    hbm_bytes=192_000_000_000,
    hbm_bytes_per_second=8e12,
    link_bytes_per_second=9e11,
    scale_up_chips=72,
    network_bytes_per_second=5e10,
    cores_per_chip=148,
    device_kinds=("NVIDIA GB200",),
    notes="The peaks are quoted from the data sheet, the rest from the book.",
)
