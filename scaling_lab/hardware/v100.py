"""V100 SXM3, 32 GB: nodes of sixteen on NVLink 2 through NVSwitch (DGX-2). No bfloat16.

Source: NVIDIA V100 and DGX-2 data sheets.
"""

from scaling_lab.hardware import Chip

CHIP = Chip(
    name="v100",
    vendor="NVIDIA",
    source="NVIDIA V100 and DGX-2 data sheets",
    flops_per_second={"float16": 1.25e14},
    hbm_bytes=32_000_000_000,
    hbm_bytes_per_second=9e11,
    link_bytes_per_second=1.5e11,
    scale_up_chips=16,
    network_bytes_per_second=6.25e9,
    cores_per_chip=80,
    device_kinds=("Tesla V100",),
    aliases=(
        "v100-32",
        "v100-32gb",
    ),
    no_compiler=(
        "compiling for a V100 is not offered, since CUDA 13 has dropped compute "
        "capability 7.0; its predictions work"
    ),
    notes=(
        "Quoted from the data sheets, for the published runs that name it. The "
        "network figure is eight 100 Gb/s cards for sixteen GPUs."
    ),
)
