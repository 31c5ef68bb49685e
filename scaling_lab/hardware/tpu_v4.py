"""TPU v4: 4x4x4 cubes joined by optical switches into a 3D torus of up to 16x16x16.

Source: jax-ml/scaling-book tpus.md at 54e2c439.
"""

from scaling_lab.hardware import Chip
from scaling_lab.hardware._flags import TPU_V4

CHIP = Chip(
    name="tpu-v4",
    vendor="Google",
    source="jax-ml/scaling-book tpus.md at 54e2c439",
    flops_per_second={"bfloat16": 2.75e14, "int8": 2.75e14},
    hbm_bytes=32_000_000_000,
    usable_hbm_bytes=32_749_125_632,
    hbm_bytes_per_second=1.2e12,
    link_bytes_per_second=3e11,
    scale_up_chips=4096,
    network_bytes_per_second=6.25e9,
    host_bytes_per_second=1.6e10,
    torus_dims=3,
    torus_limits=(16, 16, 16),
    cube=4,
    cores_per_chip=2,
    devices_per_chip=2,
    clock_hz=1.05e9,
    matrix_side=128,
    device_kinds=("TPU v4",),
    aliases=("v4",),
    compiler="tpu",
    compile_name="v4",
    flags=TPU_V4,
    conflicts=(
        (
            "A link, one way: the book says 45 GB/s, the vendor's total divided by "
            "six 50. Taken: the vendor's total."
        ),
        (
            "Devices of a chip: the compiler lists two, a running slice joins both "
            "cores into one (megacore). Taken: two, which is what can be compiled "
            "for."
        ),
    ),
    notes=(
        "No float8. A name such as v4-64 counts cores, two a chip. usable_hbm_bytes "
        "is what libtpu 0.0.42 gives out."
    ),
)
