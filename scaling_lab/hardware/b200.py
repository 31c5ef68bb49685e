"""B200: nodes of eight on NVLink 5 through NVSwitch.

Source: jax-ml/scaling-book gpus.md at 1a55377a.
"""

from scaling_lab.hardware import Chip

CHIP = Chip(
    name="b200",
    vendor="NVIDIA",
    source="jax-ml/scaling-book gpus.md at 1a55377a",
    flops_per_second={
        "bfloat16": 2.25e15,
        "float8": 4.5e15,
        "int8": 4.5e15,
        "float4": 9e15,
    },
    hbm_bytes=192_000_000_000,
    hbm_bytes_per_second=8e12,
    link_bytes_per_second=9e11,
    scale_up_chips=8,
    network_bytes_per_second=5e10,
    cores_per_chip=148,
    device_kinds=("NVIDIA B200",),
    notes=(
        "Usable memory is often 180 to 186 GB; gpu-recipes takes 2237 "
        "TFLOP/s as the bfloat16 peak."
    ),
)
