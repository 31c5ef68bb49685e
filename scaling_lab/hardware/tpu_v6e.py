"""TPU v6e (Trillium): a 2D torus of up to 16x16 and a matrix unit of 256x256.

Source: jax-ml/scaling-book tpus.md at 54e2c439; docs.cloud.google.com/tpu/docs/tpu7x.
"""

from scaling_lab.hardware import Chip
from scaling_lab.hardware._flags import TPU_V6E

CHIP = Chip(
    name="tpu-v6e",
    vendor="Google",
    source=(
        "jax-ml/scaling-book tpus.md at 54e2c439; docs.cloud.google.com/tpu/docs/tpu7x"
    ),
    flops_per_second={"bfloat16": 9.18e14, "float8": 9.18e14, "int8": 1.836e15},
    hbm_bytes=32_000_000_000,
    usable_hbm_bytes=33_554_432_000,
    hbm_bytes_per_second=1.638e12,
    link_bytes_per_second=4e11,
    scale_up_chips=256,
    network_bytes_per_second=1.25e10,
    host_bytes_per_second=3.2e10,
    torus_dims=2,
    torus_limits=(16, 16),
    cores_per_chip=1,
    clock_hz=1.75e9,
    matrix_side=256,
    device_kinds=(
        "TPU v6 lite",
        "TPU v6e",
    ),
    aliases=(
        "v6e",
        "trillium",
        "tpu-trillium",
    ),
    compiler="tpu",
    flags=TPU_V6E,
    compile_name="v6e",
    conflicts=(
        (
            "A link, one way: the book says 90 GB/s, the vendor's total divided by "
            "four 100. Taken: the vendor's total."
        ),
    ),
    notes=(
        "Measured by tpu-recipes: a matmul of 8192^3 in bfloat16 at 827 TFLOP/s "
        "(90%), a memory copy at 1360 GB/s (83%). usable_hbm_bytes is what libtpu "
        "0.0.42 gives out."
    ),
)
