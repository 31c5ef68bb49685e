"""B200: nodes of eight on NVLink 5 through NVSwitch.

Source: jax-ml/scaling-book gpus.md at 1a55377a.
"""

from scaling_lab.hardware import Chip, GpuFacts
from scaling_lab.hardware._flags import NVIDIA

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
    usable_hbm_bytes=191_514_411_008,
    hbm_bytes_per_second=8e12,
    link_bytes_per_second=9e11,
    scale_up_chips=8,
    network_bytes_per_second=5e10,
    host_bytes_per_second=6.4e10,
    cores_per_chip=148,
    device_kinds=("NVIDIA B200",),
    aliases=("b200-sxm",),
    compiler="gpu",
    flags=NVIDIA,
    gpu=GpuFacts(
        name="NVIDIA B200",
        capability=(10, 0),
        accelerated=True,
        memory_bytes=191_514_411_008,
        clock_hz=1.965e9,
        l2_bytes=132_644_864,
        shared_bytes_per_core=233472,
        shared_bytes_per_block=232448,
        fpus_per_core=128,
        links=18,
        bfloat16_ops_per_clock=1024,
        source="openxla/xla xla/backends/gpu/target_config/specs/b200.txtpb",
    ),
    conflicts=(
        (
            "bfloat16 peak: the book says 2250 TFLOP/s, gpu-recipes 2237. Taken: the "
            "book's."
        ),
        (
            "Memory: 192 GB by the book, 180 to 186 usable by users, 191.5e9 bytes by "
            "XLA's description, which is the figure of usable_hbm_bytes."
        ),
        (
            "Memory bandwidth: 8e12 bytes/s by the book, 7.67e12 by XLA's "
            "description. Taken: the book's."
        ),
    ),
)
