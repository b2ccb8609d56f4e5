# For `source launch/gpu_flags.sh`: compiler flags that NVIDIA publishes for training (JAX-Toolbox,
# docs/GPU_performance.md), and the share of the memory that XLA takes. What the environment has takes precedence.
XLA_FLAGS="--xla_gpu_enable_latency_hiding_scheduler=true --xla_gpu_all_gather_combine_threshold_bytes=8589934592 \
--xla_gpu_reduce_scatter_combine_threshold_bytes=8589934592 ${XLA_FLAGS-}"
XLA_CLIENT_MEM_FRACTION="${XLA_CLIENT_MEM_FRACTION-0.9}"
export XLA_FLAGS XLA_CLIENT_MEM_FRACTION
