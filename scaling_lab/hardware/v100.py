"""V100, 32 GB: nodes of eight on NVLink 2, as clouds let them. No bfloat16.

Source: NVIDIA V100 data sheet; the network of AWS's p3dn.24xlarge and of Azure's
ND40rs_v2, 100 Gb/s a node.
"""

from scaling_lab.hardware import Chip

CHIP = Chip(
    name="v100",
    vendor="NVIDIA",
    source="NVIDIA V100 data sheet; AWS p3dn.24xlarge, Azure ND40rs_v2",
    flops_per_second={"float16": 1.25e14},
    hbm_bytes=32_000_000_000,
    hbm_bytes_per_second=9e11,
    link_bytes_per_second=1.5e11,
    scale_up_chips=8,
    network_bytes_per_second=1.5625e9,
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
    conflicts=(
        "Network and node are the machine's: clouds give eight GPUs 100 Gb/s together; "
        "NVIDIA's DGX-1 gives eight 400 Gb/s and its DGX-2 sixteen 800 Gb/s, of which "
        "DeepSpeed's evaluation of ZeRO++ uses 100 to 800. The clouds' is taken; a "
        "plan's --node-gbps says another.",
    ),
    notes="Quoted from the data sheets, for the published runs that name it.",
)
