"""GB200 NVL72, one GPU: domains of 72 GPUs on NVLink 5; a topology is domains x GPUs in
a domain.

Source: jax-ml/scaling-book gpus.md at 1a55377a (network); NVIDIA GB200 data sheet
(peaks).
"""

from scaling_lab.hardware import Chip, GpuFacts
from scaling_lab.hardware._flags import NVIDIA

CHIP = Chip(
    name="gb200",
    vendor="NVIDIA",
    source=(
        "jax-ml/scaling-book gpus.md at 1a55377a (network); NVIDIA GB200 data sheet "
        "(peaks)"
    ),
    flops_per_second={"bfloat16": 2.5e15, "float8": 5e15, "int8": 5e15, "float4": 1e16},
    hbm_bytes=192_000_000_000,
    usable_hbm_bytes=197_897_748_480,
    hbm_bytes_per_second=8e12,
    link_bytes_per_second=9e11,
    scale_up_chips=72,
    network_bytes_per_second=5e10,
    cores_per_chip=148,
    device_kinds=("NVIDIA GB200",),
    aliases=("gb200-nvl72",),
    compiler="gpu",
    flags=NVIDIA,
    gpu=GpuFacts(
        name="NVIDIA GB200",
        capability=(10, 0),
        accelerated=True,
        memory_bytes=197_897_748_480,
        clock_hz=2.062e9,
        l2_bytes=135_528_448,
        shared_bytes_per_core=233472,
        shared_bytes_per_block=232448,
        fpus_per_core=128,
        links=18,
        bfloat16_ops_per_clock=1024,
        source="openxla/xla xla/backends/gpu/target_config/specs/gb200.txtpb",
    ),
    conflicts=(
        (
            "bfloat16 peak: 2500 TFLOP/s by the data sheet, 2250 by "
            "verda.com/blog/gb300-nvl72-architecture. Taken: the data sheet's."
        ),
        (
            "Multiprocessors: 148 by the book, 152 by XLA's description. Taken: the "
            "book's."
        ),
        (
            "Memory: 192 GB by the book, 186 by users, 197.9e9 bytes by XLA's "
            "description, which is the figure of usable_hbm_bytes."
        ),
    ),
    notes="The peaks are quoted from the data sheet, the rest from the book.",
)
