"""A100 SXM, 80 GB: nodes of eight on NVLink 3 through NVSwitch. The 40 GB card is
a100-40.

Source: jax-ml/scaling-book gpus.md at 1a55377a.
"""

from scaling_lab.hardware import Chip, GpuFacts
from scaling_lab.hardware._flags import NVIDIA

CHIP = Chip(
    name="a100",
    vendor="NVIDIA",
    source="jax-ml/scaling-book gpus.md at 1a55377a",
    flops_per_second={"bfloat16": 3.12e14, "int8": 6.24e14},
    hbm_bytes=80_000_000_000,
    usable_hbm_bytes=85_100_068_864,
    hbm_bytes_per_second=2.039e12,
    link_bytes_per_second=3e11,
    scale_up_chips=8,
    network_bytes_per_second=2.5e10,
    host_bytes_per_second=3.2e10,
    cores_per_chip=108,
    device_kinds=("NVIDIA A100-SXM4-80GB",),
    aliases=(
        "a100-80",
        "a100-80gb",
        "a100-sxm",
        "a100-sxm-80",
    ),
    compiler="gpu",
    flags=NVIDIA,
    gpu=GpuFacts(
        name="NVIDIA A100-SXM4-80GB",
        capability=(8, 0),
        accelerated=False,
        memory_bytes=85_100_068_864,
        clock_hz=1.41e9,
        l2_bytes=41_943_040,
        shared_bytes_per_core=167936,
        shared_bytes_per_block=166912,
        fpus_per_core=64,
        links=12,
        bfloat16_ops_per_clock=256,
        source="openxla/xla xla/backends/gpu/target_config/specs/a100_sxm_80.txtpb",
    ),
    conflicts=(
        (
            "The book's table rounds to 3.1e14 FLOP/s and 2.0e12 bytes/s. Taken: the "
            "vendor's."
        ),
    ),
    notes=(
        "No float8. The network figure is the usual node of eight 200 Gb/s cards. "
        "usable_hbm_bytes is what the driver reports."
    ),
)
