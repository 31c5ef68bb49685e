"""TPU v4: 4x4x4 cubes joined by optical switches into a 3D torus of up to 16x16x16.

Source: jax-ml/scaling-book tpus.md at 54e2c439.
"""

from scaling_lab.hardware import Chip

CHIP = Chip(
    name="tpu-v4",
    vendor="Google",
    source="jax-ml/scaling-book tpus.md at 54e2c439",
    flops_per_second={"bfloat16": 2.75e14, "int8": 2.75e14},
    hbm_bytes=32_000_000_000,
    hbm_bytes_per_second=1.2e12,
    link_bytes_per_second=3e11,
    scale_up_chips=4096,
    network_bytes_per_second=6.25e9,
    torus_dims=3,
    cores_per_chip=2,
    devices_per_chip=2,
    device_kinds=("TPU v4",),
    notes=(
        "No float8. The compiler lists two devices a chip; a running slice "
        "joins both cores into one (megacore). A name such as v4-64 counts "
        "cores, two a chip. The book says 45 GB/s a link, the vendor 50."
    ),
)
