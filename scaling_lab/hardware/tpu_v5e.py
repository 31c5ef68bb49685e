"""TPU v5e: a 2D torus of up to 16x16; only a full axis of 16 wraps around.

Source: jax-ml/scaling-book tpus.md at 54e2c439; docs.cloud.google.com/tpu/docs/v5e.
"""

from scaling_lab.hardware import Chip

CHIP = Chip(
    name="tpu-v5e",
    vendor="Google",
    source=(
        "jax-ml/scaling-book tpus.md at 54e2c439; docs.cloud.google.com/tpu/docs/v5e"
    ),
    flops_per_second={"bfloat16": 1.97e14, "int8": 3.94e14},
    hbm_bytes=16_000_000_000,
    hbm_bytes_per_second=8.19e11,
    link_bytes_per_second=2e11,
    scale_up_chips=256,
    network_bytes_per_second=3.125e9,
    torus_dims=2,
    cores_per_chip=1,
    device_kinds=("TPU v5 lite", "TPU v5e"),
    notes=(
        "The vendor says 400 GB/s of ICI a chip, both directions together, "
        "and 393 TOP/s of int8. Two 100 Gb/s cards serve a host of eight "
        "chips."
    ),
)
