"""Named sets of a compiler's flags: what each does, and where it comes from.

A run says a set by its name (``--xla-flags overlap``); its record holds the flags.
"""

_TPU_ASYNC = (
    "--xla_tpu_enable_async_collective_fusion=true "
    "--xla_tpu_enable_async_collective_fusion_fuse_all_gather=true "
    "--xla_tpu_enable_async_collective_fusion_multiple_steps=true "
    "--xla_tpu_overlap_compute_collective_tc=true --xla_enable_async_all_gather=true"
)
#: Weights are gathered while products run; of this chip nobody says how much of the
#: fast memory fusions may use.
TPU_V4 = {"overlap": _TPU_ASYNC}
#: The same as MaxText has it (benchmarks/xla_flags_library.py at
#: 05d3525e), and fusions may use more of the fast memory than a third of it.
TPU_V5P = {"overlap": f"--xla_tpu_scoped_vmem_limit_kib=49152 {_TPU_ASYNC}"}
#: The same with this chip's larger fast memory; MaxText's own recipes say so.
TPU_V6E = {"overlap": f"--xla_tpu_scoped_vmem_limit_kib=98304 {_TPU_ASYNC}"}
#: Collectives run on the SparseCores (AI-Hypercomputer/tpu-recipes at bc90a992,
#: Llama 3.1 70B).
TPU_7X = {
    "overlap": (
        "--xla_tpu_scoped_vmem_limit_kib=65536 "
        "--xla_tpu_bf16_emission_mode=NATIVE_EMISSION "
        "--xla_tpu_enable_sparse_core_reduce_scatter_v2=true "
        "--xla_tpu_enable_sparse_core_collective_offload_all_gather=true "
        "--xla_tpu_enable_sparse_core_collective_offload_2d_all_gather=true "
        "--xla_tpu_enable_all_gather_offload_tracing=true "
        "--xla_tpu_use_tc_device_shape_on_sc=true "
        "--xla_sc_disable_megacore_partitioning=true "
        "--xla_tpu_enable_async_collective_fusion_fuse_all_gather=false "
        "--xla_enable_async_all_gather=true "
        "--xla_tpu_prefer_async_allgather_to_allreduce=true "
        "--xla_tpu_enable_sparse_core_collective_offload_all_reduce=true "
        "--xla_tpu_enable_sparse_core_collective_offload_reduce_scatter=true "
        "--xla_tpu_enable_sparse_core_collective_offload_3d_all_gather=true "
        "--xla_tpu_use_single_sparse_core_for_all_gather_offload=true"
    )
}
#: Collectives of one layer run while another layer computes (openxla/xla, GPU
#: performance flags), and small ones together.
NVIDIA = {
    # The scheduler starts up to four collectives, where it would wait for the first to
    # end before it starts the next; and lets a program fill 96 % of the memory, where
    # above 76 % it gives up hiding any (GetSchedulerMemoryLimit in openxla/xla
    # gpu_hlo_schedule.cc: 80 % less arguments and results, times this factor). Its own
    # count of a program is above what that takes in the end.
    "ahead": (
        "--xla_gpu_experimental_parallel_collective_overlap_limit=4 "
        "--xla_gpu_memory_limit_slop_factor=120"
    ),
    "overlap": (
        "--xla_gpu_enable_pipelined_all_gather=true "
        "--xla_gpu_enable_pipelined_reduce_scatter=true "
        "--xla_gpu_enable_pipelined_all_reduce=true "
        "--xla_gpu_all_gather_combine_threshold_bytes=1073741824 "
        "--xla_gpu_reduce_scatter_combine_threshold_bytes=134217728 "
        "--xla_gpu_all_reduce_combine_threshold_bytes=1073741824"
    ),
}
