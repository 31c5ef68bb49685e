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
    usable_hbm_bytes=16_911_433_728,
    hbm_bytes_per_second=8.19e11,
    link_bytes_per_second=2e11,
    scale_up_chips=256,
    network_bytes_per_second=3.125e9,
    host_bytes_per_second=1.6e10,
    torus_dims=2,
    torus_limits=(16, 16),
    cores_per_chip=1,
    clock_hz=1.5e9,
    matrix_side=128,
    device_kinds=(
        "TPU v5 lite",
        "TPU v5e",
    ),
    aliases=(
        "v5e",
        "tpu-v5-lite",
        "v5litepod",
    ),
    compiler="tpu",
    compile_name="v5e",
    conflicts=(
        (
            "A link, one way: the book says 45 GB/s, the vendor's total divided by "
            "four 50. Taken: the vendor's total."
        ),
        "VMEM: the book says 128 MiB, MaxText's flags 64. Neither is used.",
        "int8: the book says 394 TOP/s, the vendor 393. Taken: the book's.",
    ),
    notes=(
        "The vendor says 400 GB/s of ICI a chip, both directions together. Two 100 "
        "Gb/s cards serve a host of eight chips. usable_hbm_bytes is what libtpu "
        "0.0.42 gives out."
    ),
)
