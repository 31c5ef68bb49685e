"""TPU7x (Ironwood): a 3D torus of up to 9216 chips.

Source: docs.cloud.google.com/tpu/docs/tpu7x; AI-Hypercomputer/maxtext
custom_model.md.
"""

from scaling_lab.hardware import Chip

CHIP = Chip(
    name="tpu-7x",
    vendor="Google",
    source=(
        "docs.cloud.google.com/tpu/docs/tpu7x; AI-Hypercomputer/maxtext custom_model.md"
    ),
    flops_per_second={"bfloat16": 2.307e15, "float8": 4.614e15},
    hbm_bytes=192_000_000_000,
    hbm_bytes_per_second=7.38e12,
    link_bytes_per_second=6e11,
    scale_up_chips=9216,
    network_bytes_per_second=1.25e10,
    torus_dims=3,
    cores_per_chip=2,
    devices_per_chip=2,
    device_kinds=("TPU7x",),
    notes=(
        "Two chiplets a chip, each a JAX device, joined by a link six times "
        "as fast as one ICI link. int8 is not listed."
    ),
)
