"""A100 SXM, 40 GB: an A100 with less and slower memory.

Source: jax-ml/scaling-book gpus.md at 1a55377a; NVIDIA A100 data sheet (memory).
"""

from scaling_lab.hardware import Chip, GpuFacts

CHIP = Chip(
    name="a100-40",
    vendor="NVIDIA",
    source="jax-ml/scaling-book gpus.md at 1a55377a; NVIDIA A100 data sheet (memory)",
    flops_per_second={"bfloat16": 3.12e14, "int8": 6.24e14},
    hbm_bytes=40_000_000_000,
    usable_hbm_bytes=42_331_013_120,
    hbm_bytes_per_second=1.555e12,
    link_bytes_per_second=3e11,
    scale_up_chips=8,
    network_bytes_per_second=2.5e10,
    cores_per_chip=108,
    device_kinds=("NVIDIA A100-SXM4-40GB",),
    aliases=(
        "a100-40gb",
        "a100-sxm-40",
    ),
    compiler="gpu",
    gpu=GpuFacts(
        name="NVIDIA A100-SXM4-40GB",
        capability=(8, 0),
        accelerated=False,
        memory_bytes=42_331_013_120,
        clock_hz=1.41e9,
        l2_bytes=41_943_040,
        shared_bytes_per_core=167936,
        shared_bytes_per_block=166912,
        fpus_per_core=64,
        links=12,
        bfloat16_ops_per_clock=256,
        source="openxla/xla xla/backends/gpu/target_config/specs/a100_sxm_40.txtpb",
    ),
    notes=(
        "No float8. mosaicml/llm-foundry's published runs have 1600 Gb/s a node, the "
        "figure here. usable_hbm_bytes is what the driver reports."
    ),
)
