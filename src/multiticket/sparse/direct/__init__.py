"""The path of CPUs and of FSDP2: k gradients are computed, and no dense one."""
