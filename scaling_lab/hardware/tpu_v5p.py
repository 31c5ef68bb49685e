"""TPU v5p: a 3D torus of up to 16x20x28; JAX shows its two cores as one device.

Source: jax-ml/scaling-book tpus.md at 54e2c439;
docs.cloud.google.com/tpu/docs/tpu7x.
"""

from scaling_lab.hardware import Chip

CHIP = Chip(
    name="tpu-v5p",
    vendor="Google",
    source=(
        "jax-ml/scaling-book tpus.md at 54e2c439; docs.cloud.google.com/tpu/docs/tpu7x"
    ),
    flops_per_second={"bfloat16": 4.59e14, "float8": 4.59e14, "int8": 9.18e14},
    hbm_bytes=95_000_000_000,
    hbm_bytes_per_second=2.765e12,
    link_bytes_per_second=6e11,
    scale_up_chips=8960,
    network_bytes_per_second=6.25e9,
    torus_dims=3,
    cores_per_chip=2,
    device_kinds=("TPU v5p", "TPU v5"),
    notes=(
        "float8 runs at the bfloat16 rate. The largest slice that can be "
        "asked for has 6144 chips. The book rounds memory to 96 GB and "
        "2.8e12 bytes/s."
    ),
)
