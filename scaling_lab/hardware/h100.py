"""H100 SXM: nodes of eight on NVLink 4 through NVSwitch. The PCIe and NVL cards are
others.

Source: jax-ml/scaling-book gpus.md at 1a55377a.
"""

from scaling_lab.hardware import Chip

CHIP = Chip(
    name="h100",
    vendor="NVIDIA",
    source="jax-ml/scaling-book gpus.md at 1a55377a",
    flops_per_second={"bfloat16": 9.89e14, "float8": 1.979e15, "int8": 1.979e15},
    hbm_bytes=80_000_000_000,
    hbm_bytes_per_second=3.35e12,
    link_bytes_per_second=4.5e11,
    scale_up_chips=8,
    network_bytes_per_second=5e10,
    cores_per_chip=132,
    device_kinds=("NVIDIA H100 80GB HBM3",),
    notes=(
        "A large all-reduce reaches about 370 GB/s of bus bandwidth, one of "
        "58 MB about 150; reducing in the switch adds about 30%."
    ),
)
