"""H100 SXM with HBM2e, held to 500 W: the machine of torchtitan's published runs.

Source: pytorch/torchtitan benchmarks/llama3_h100_202412_torchtitan.md at 31a17bfd
(memory, power, network); jax-ml/scaling-book gpus.md at 1a55377a (the rest, as an
H100).
"""

from scaling_lab.hardware import Chip, GpuFacts

CHIP = Chip(
    name="h100-hbm2e",
    vendor="NVIDIA",
    source=(
        "pytorch/torchtitan benchmarks/llama3_h100_202412_torchtitan.md at 31a17bfd "
        "(memory, power, network); jax-ml/scaling-book gpus.md at 1a55377a (the rest, "
        "as an H100)"
    ),
    flops_per_second={"bfloat16": 9.89e14, "float8": 1.979e15, "int8": 1.979e15},
    hbm_bytes=96_000_000_000,
    usable_hbm_bytes=102_005_473_280,
    hbm_bytes_per_second=2.4e12,
    link_bytes_per_second=4.5e11,
    scale_up_chips=8,
    network_bytes_per_second=5e10,
    cores_per_chip=132,
    device_kinds=("NVIDIA H100 96GB HBM2e",),
    aliases=(
        "h100-hbm2e-500w",
        "h100-96",
        "h100-96gb",
    ),
    compiler="gpu",
    gpu=GpuFacts(
        name="NVIDIA H100",
        capability=(9, 0),
        accelerated=True,
        memory_bytes=102_005_473_280,
        clock_hz=1.98e9,
        l2_bytes=52_428_800,
        shared_bytes_per_core=233472,
        shared_bytes_per_block=232448,
        fpus_per_core=128,
        links=18,
        bfloat16_ops_per_clock=512,
        source=(
            "openxla/xla xla/backends/gpu/target_config/specs/h100_sxm.txtpb, and 95 "
            "GiB as torchtitan logs it"
        ),
    ),
    conflicts=(
        (
            "Peak: torchtitan says it lies between the SXM's and the NVL's and is not "
            "known. Taken: the SXM's, so a fitted efficiency is a share of 700 W."
        ),
    ),
    notes="The device kind is unconfirmed: no public log names it.",
)
