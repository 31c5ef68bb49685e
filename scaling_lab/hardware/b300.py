"""B300 (Blackwell Ultra): nodes of eight on NVLink 5 through NVSwitch.

Source: glennklockwood.com/garden/processors/B300 and
verda.com/blog/gb300-nvl72-architecture, quoting NVIDIA's data sheets.
"""

from scaling_lab.hardware import Chip, GpuFacts
from scaling_lab.hardware._flags import NVIDIA

CHIP = Chip(
    name="b300",
    vendor="NVIDIA",
    source=(
        "glennklockwood.com/garden/processors/B300 and "
        "verda.com/blog/gb300-nvl72-architecture, quoting NVIDIA's data sheets"
    ),
    flops_per_second={
        "bfloat16": 2.25e15,
        "float8": 4.5e15,
        "int8": 1.5e14,
        "float4": 1.4e16,
    },
    hbm_bytes=288_000_000_000,
    usable_hbm_bytes=297_021_865_984,
    hbm_bytes_per_second=8e12,
    link_bytes_per_second=9e11,
    scale_up_chips=8,
    network_bytes_per_second=1e11,
    cores_per_chip=148,
    device_kinds=("NVIDIA B300",),
    aliases=("b300-sxm",),
    compiler="gpu",
    flags=NVIDIA,
    gpu=GpuFacts(
        name="NVIDIA B300",
        capability=(10, 3),
        accelerated=True,
        memory_bytes=297_021_865_984,
        clock_hz=1.965e9,
        l2_bytes=135_528_448,
        shared_bytes_per_core=233472,
        shared_bytes_per_block=232448,
        fpus_per_core=128,
        links=18,
        bfloat16_ops_per_clock=1024,
        source="openxla/xla xla/backends/gpu/target_config/specs/b300.txtpb",
    ),
    conflicts=(
        "int8: 150 TOP/s by one source, 4500 by the other. Taken: the lower.",
        "float4: 14 PFLOP/s by one source, 13.1 by the other. Taken: the former.",
        (
            "Memory: 288 GB by NVIDIA, 270 usable by verda.com, 297.0e9 bytes by "
            "XLA's description, which is the figure of usable_hbm_bytes."
        ),
        "Multiprocessors: 148, as a B200; XLA's description says 158. Taken: 148.",
    ),
    notes="Quoted, unmeasured. The network figure is one 800 Gb/s card a GPU.",
)
