"""GB300 NVL72, one GPU: domains of 72 GPUs on NVLink 5; a topology is domains x GPUs in
a domain.

Source: verda.com/blog/gb300-nvl72-architecture and
glennklockwood.com/garden/processors/B300, quoting NVIDIA's data sheets.
"""

from scaling_lab.hardware import Chip, GpuFacts
from scaling_lab.hardware._flags import NVIDIA

CHIP = Chip(
    name="gb300",
    vendor="NVIDIA",
    source=(
        "verda.com/blog/gb300-nvl72-architecture and "
        "glennklockwood.com/garden/processors/B300, quoting NVIDIA's data sheets"
    ),
    flops_per_second={
        "bfloat16": 2.5e15,
        "float8": 5e15,
        "int8": 1.65e14,
        "float4": 1.5e16,
    },
    hbm_bytes=288_000_000_000,
    usable_hbm_bytes=297_021_079_552,
    hbm_bytes_per_second=8e12,
    link_bytes_per_second=9e11,
    scale_up_chips=72,
    network_bytes_per_second=1e11,
    cores_per_chip=152,
    device_kinds=("NVIDIA GB300",),
    aliases=("gb300-nvl72",),
    compiler="gpu",
    flags=NVIDIA,
    gpu=GpuFacts(
        name="NVIDIA GB300",
        capability=(10, 3),
        accelerated=True,
        memory_bytes=297_021_079_552,
        clock_hz=2.07e9,
        l2_bytes=135_528_448,
        shared_bytes_per_core=233472,
        shared_bytes_per_block=232448,
        fpus_per_core=128,
        links=18,
        bfloat16_ops_per_clock=1024,
        source="openxla/xla xla/backends/gpu/target_config/specs/gb300.txtpb",
    ),
    conflicts=(
        (
            "Memory: 288 GB by NVIDIA, 279 by verda.com, 297.0e9 bytes by XLA's "
            "description, which is the figure of usable_hbm_bytes."
        ),
    ),
    notes="Quoted, unmeasured. The network figure is one 800 Gb/s card a GPU.",
)
