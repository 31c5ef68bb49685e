"""MI300X: nodes of eight in a full mesh of xGMI: seven links of 64 GB/s, one way.

Source: AMD Instinct MI300X data sheet; memory size also in MLPerf system descriptions.
"""

from scaling_lab.hardware import Chip

CHIP = Chip(
    name="mi300x",
    vendor="AMD",
    source=(
        "AMD Instinct MI300X data sheet; memory size also in MLPerf system descriptions"
    ),
    flops_per_second={"bfloat16": 1.307e15, "float8": 2.615e15, "int8": 2.615e15},
    hbm_bytes=192_000_000_000,
    hbm_bytes_per_second=5.3e12,
    link_bytes_per_second=4.48e11,
    scale_up_chips=8,
    network_bytes_per_second=5e10,
    host_bytes_per_second=6.4e10,
    cores_per_chip=304,
    device_kinds=("AMD Instinct MI300X",),
    aliases=("mi300",),
    no_compiler=(
        "there is no compiler for mi300x without one: JAX's ROCm plugin offers no "
        "topology of absent devices; its predictions work"
    ),
    notes=(
        "Quoted from the data sheet, unmeasured. A ring that uses one pair of links "
        "only gets 64 GB/s."
    ),
)
