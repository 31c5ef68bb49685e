"""TPU7x (Ironwood): a 3D torus of up to 9216 chips, two chiplets a chip.

Source: docs.cloud.google.com/tpu/docs/tpu7x; AI-Hypercomputer/maxtext custom_model.md.
"""

from scaling_lab.hardware import Chip
from scaling_lab.hardware._flags import TPU_7X

CHIP = Chip(
    name="tpu-7x",
    vendor="Google",
    source=(
        "docs.cloud.google.com/tpu/docs/tpu7x; AI-Hypercomputer/maxtext custom_model.md"
    ),
    flops_per_second={"bfloat16": 2.307e15, "float8": 4.614e15},
    hbm_bytes=192_000_000_000,
    usable_hbm_bytes=203_474_075_648,
    hbm_bytes_per_second=7.38e12,
    link_bytes_per_second=6e11,
    scale_up_chips=9216,
    network_bytes_per_second=1.25e10,
    torus_dims=3,
    torus_limits=(16, 24, 24),
    cube=4,
    cores_per_chip=2,
    devices_per_chip=2,
    clock_hz=2.2e9,
    matrix_side=256,
    device_kinds=("TPU7x",),
    aliases=(
        "tpu7x",
        "tpu-v7x",
        "v7x",
        "ironwood",
    ),
    compiler="tpu",
    flags=TPU_7X,
    compile_name="tpu7x",
    conflicts=(
        (
            "A link, one way: MaxText reckons 90 GB/s, the vendor's total divided by "
            "six 100. Taken: the vendor's total."
        ),
        "int8 is not listed by the vendor.",
    ),
    notes=(
        "Each chiplet is a JAX device; a link six times as fast as one ICI link joins "
        "them. Published runs count devices, two a chip. usable_hbm_bytes is what "
        "libtpu 0.0.42 gives out."
    ),
)
