"""H100 SXM: nodes of eight on NVLink 4 through NVSwitch. The PCIe and NVL cards are
others.

Source: jax-ml/scaling-book gpus.md at 1a55377a.
"""

from scaling_lab.hardware import Chip, GpuFacts
from scaling_lab.hardware._flags import NVIDIA

CHIP = Chip(
    name="h100",
    vendor="NVIDIA",
    source="jax-ml/scaling-book gpus.md at 1a55377a",
    flops_per_second={"bfloat16": 9.89e14, "float8": 1.979e15, "int8": 1.979e15},
    hbm_bytes=80_000_000_000,
    usable_hbm_bytes=84_942_979_072,
    hbm_bytes_per_second=3.35e12,
    link_bytes_per_second=4.5e11,
    scale_up_chips=8,
    network_bytes_per_second=5e10,
    host_bytes_per_second=6.4e10,
    cores_per_chip=132,
    device_kinds=("NVIDIA H100 80GB HBM3",),
    aliases=(
        "h100-80",
        "h100-80gb",
        "h100-sxm",
    ),
    compiler="gpu",
    flags=NVIDIA,
    gpu=GpuFacts(
        name="NVIDIA H100 80GB HBM3",
        capability=(9, 0),
        accelerated=True,
        memory_bytes=84_942_979_072,
        clock_hz=1.98e9,
        l2_bytes=52_428_800,
        shared_bytes_per_core=233472,
        shared_bytes_per_block=232448,
        fpus_per_core=128,
        links=18,
        bfloat16_ops_per_clock=512,
        source="openxla/xla xla/backends/gpu/target_config/specs/h100_sxm.txtpb",
    ),
    conflicts=(
        (
            "NVLink, one way: 450 GB/s by the vendor; a large all-reduce reaches "
            "about 370 of bus bandwidth, one of 58 MB about 150. Taken: the vendor's."
        ),
    ),
    notes=(
        "Reducing in the switch adds about 30%. usable_hbm_bytes is what the driver "
        "reports."
    ),
)
