"""The GPU's compiler, in JAX's CUDA plugin, without a GPU.

What it would ask the device is told it in a text proto written from the chip's facts.

Source: openxla/xla, xla/stream_executor/device_description.proto.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from scaling_lab.compile.backends import NoCompiler, installed
from scaling_lab.hardware import Chip, Target

EXTRA = "gpu-compile"
PLUGIN = "jax-cuda13-plugin"
_CUDNN = "nvidia-cudnn-cu13"
_TOOLKIT = "13.0.0"

#: XLA's numbers for the types a matrix unit multiplies, with the rate each has
#: relative to bfloat16 (xla/xla_data.proto).
_BFLOAT16, _FLOAT16, _FLOAT8 = 16, 10, (19, 20)


def version() -> str:
    """As in ``jax-cuda13-plugin 0.10.2``.

    Raises:
      NoCompiler: the plugin is not installed.
    """
    return f"{PLUGIN} {installed(PLUGIN, EXTRA)}"


def environment(target: Target) -> dict[str, str]:
    """JAX itself stays on the host's processor, and looks for no GPU's driver."""
    del target
    return {
        "JAX_PLATFORMS": "cpu",
        "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }


def devices(target: Target) -> Sequence[Any]:
    """The GPUs of so many nodes, numbered node by node.

    Raises:
      NoCompiler: the plugin is not installed, or refuses the chip.
    """
    from jax.experimental import topologies

    version()
    assert target.chip is not None
    for name, value in environment(target).items():
        os.environ.setdefault(name, value)
    nodes, gpus = target.topology
    try:
        found = topologies.get_topology_desc(
            platform="cuda",
            topology=f"{nodes}x1x{gpus}",
            target_config=description(target.chip),
        )
    except Exception as error:  # jaxlib's own class, and what it says is all there is
        hint = ""
        if isinstance(error, NotImplementedError):  # JAX has looked for a driver
            hint = "; start the process with JAX_PLATFORMS=cpu"
        raise NoCompiler(
            f"target {target.text}: {version()} refuses it: {error}{hint}"
        ) from error
    return found.devices


def out_of_memory(message: str) -> None:
    """``None``: this compiler plans a program of any size and judges none."""
    del message


def refused_module(lowered: Any, options: Mapping[str, Any]) -> None:
    """``None``: it refuses none."""
    del lowered, options


def description(chip: Chip) -> str:
    """A ``GpuTargetConfigProto`` in text form: one chip as XLA's GPU compiler sees it.

    Raises:
      ValueError: the chip has no facts of a GPU.
      NoCompiler: cuDNN, whose version it names, is not installed.
    """
    facts, bandwidth, cores = chip.gpu, chip.hbm_bytes_per_second, chip.cores_per_chip
    if facts is None or bandwidth is None or cores is None:
        raise ValueError(f"{chip.name} is not described as a GPU")
    major, minor = facts.capability
    extension = "ACCELERATED_FEATURES" if facts.accelerated else "NONE"
    # XLA has one figure of peak: arrays a core x operations a clock x clock.
    rate = 2 * cores * 4 * facts.bfloat16_ops_per_clock
    clock = chip.flops_per_second["bfloat16"] / rate / 1e9
    units = _matrix_units(clock, facts.bfloat16_ops_per_clock)
    cudnn = ".".join(installed(_CUDNN, EXTRA).split(".")[:3])
    return f"""gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  threads_per_core_limit: 2048
  core_count: {cores}
  fpus_per_core: {facts.fpus_per_core}
  shared_memory_per_block: 49152
  shared_memory_per_core: {facts.shared_bytes_per_core}
  shared_memory_per_block_optin: {facts.shared_bytes_per_block}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  memory_bandwidth: {bandwidth:.0f}
  l2_cache_size: {facts.l2_bytes}
  clock_rate_ghz: {facts.clock_hz / 1e9:g}
  device_memory_size: {facts.memory_bytes}
  cuda_compute_capability {{
    major: {major}
    minor: {minor}
    feature_extension: {extension}
  }}
  device_interconnect_info {{ active_links: {facts.links} }}
  matrix_unit_description {{{units}
  }}
  device_vendor: "NVIDIA Corporation"
  name: "{facts.name}"
  driver_version: "{_TOOLKIT}"
  runtime_version: "{_TOOLKIT}"
  compile_time_toolkit_version: "{_TOOLKIT}"
  dnn_version: "{cudnn}"
}}
platform_name: "CUDA"
dnn_version_info {{ {_version_fields(cudnn)} }}
device_description_str: "{facts.name}"
"""


def _matrix_units(clock_ghz: float, bfloat16_ops: int) -> str:
    rates = {_BFLOAT16: bfloat16_ops, _FLOAT16: bfloat16_ops}
    rates |= dict.fromkeys(_FLOAT8, 2 * bfloat16_ops)
    return "".join(
        f"\n    rate_infos {{ key: {key} value {{ clock_rate_ghz: {clock_ghz:.6g} "
        f"units_per_core: 4 ops_per_clock: {ops} }} }}"
        for key, ops in rates.items()
    )


def _version_fields(text: str) -> str:
    names = ("major", "minor", "patch")
    pairs = zip(names, text.split("."), strict=True)
    return " ".join(f"{name}: {value}" for name, value in pairs)
