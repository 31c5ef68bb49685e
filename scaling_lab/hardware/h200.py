"""H200 SXM: nodes of eight on NVLink 4 through NVSwitch.

Source: jax-ml/scaling-book gpus.md at 1a55377a.
"""

from scaling_lab.hardware import Chip, GpuFacts
from scaling_lab.hardware._flags import NVIDIA

CHIP = Chip(
    name="h200",
    vendor="NVIDIA",
    source="jax-ml/scaling-book gpus.md at 1a55377a",
    flops_per_second={"bfloat16": 9.89e14, "float8": 1.979e15, "int8": 1.979e15},
    hbm_bytes=141_000_000_000,
    usable_hbm_bytes=151_397_597_184,
    hbm_bytes_per_second=4.8e12,
    link_bytes_per_second=4.5e11,
    scale_up_chips=8,
    network_bytes_per_second=5e10,
    host_bytes_per_second=6.4e10,
    cores_per_chip=132,
    device_kinds=("NVIDIA H200",),
    aliases=(
        "h200-sxm",
        "h200-141gb",
    ),
    compiler="gpu",
    flags=NVIDIA,
    gpu=GpuFacts(
        name="NVIDIA H200",
        capability=(9, 0),
        accelerated=True,
        memory_bytes=151_397_597_184,
        clock_hz=1.98e9,
        l2_bytes=52_428_800,
        shared_bytes_per_core=233472,
        shared_bytes_per_block=232448,
        fpus_per_core=128,
        links=18,
        bfloat16_ops_per_clock=512,
        source="openxla/xla xla/backends/gpu/target_config/specs/h200.txtpb",
    ),
    notes=(
        "An H100 with more and faster memory. usable_hbm_bytes is what the driver "
        "reports."
    ),
)
