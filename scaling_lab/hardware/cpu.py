"""The host's processor: its devices are simulated, to try layouts without a chip.

Source: JAX's jax_num_cpu_devices, which sets how many there are.
"""

from scaling_lab.hardware import Chip

CHIP = Chip(
    name="cpu",
    vendor="host",
    source="JAX's jax_num_cpu_devices, which sets how many there are",
    flops_per_second={},
    device_kinds=("cpu",),
    compiler="cpu",
    notes="No peak is claimed: hosts differ, and simulated devices share one.",
)
