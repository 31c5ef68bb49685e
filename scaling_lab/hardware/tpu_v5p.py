"""TPU v5p: a 3D torus of up to 16x20x28; JAX shows its two cores as one device.

Source: jax-ml/scaling-book tpus.md at 54e2c439; docs.cloud.google.com/tpu/docs/tpu7x.
"""

from scaling_lab.hardware import Chip
from scaling_lab.hardware._flags import TPU_V5P

CHIP = Chip(
    name="tpu-v5p",
    vendor="Google",
    source=(
        "jax-ml/scaling-book tpus.md at 54e2c439; docs.cloud.google.com/tpu/docs/tpu7x"
    ),
    flops_per_second={"bfloat16": 4.59e14, "float8": 4.59e14, "int8": 9.18e14},
    hbm_bytes=95_000_000_000,
    usable_hbm_bytes=102_800_042_229,
    hbm_bytes_per_second=2.765e12,
    link_bytes_per_second=6e11,
    scale_up_chips=8960,
    network_bytes_per_second=6.25e9,
    host_bytes_per_second=1.6e10,
    torus_dims=3,
    torus_limits=(16, 20, 28),
    cube=4,
    cores_per_chip=2,
    clock_hz=1.75e9,
    matrix_side=128,
    device_kinds=(
        "TPU v5p",
        "TPU v5",
    ),
    aliases=("v5p",),
    compiler="tpu",
    flags=TPU_V5P,
    compile_name="v5p",
    conflicts=(
        (
            "A link, one way: the book says 90 GB/s, the vendor's total divided by "
            "six 100. Taken: the vendor's total."
        ),
        (
            "Memory: the vendor says 95 GB and 2.765 TB/s, the book 96 and 2.8. "
            "Taken: the vendor's."
        ),
        "float8 runs at the bfloat16 rate by the vendor, though int8 is twice as fast.",
    ),
    notes=(
        "The largest slice that can be asked for has 6144 chips. usable_hbm_bytes is "
        "what libtpu 0.0.42 gives out."
    ),
)
