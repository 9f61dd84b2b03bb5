"""GPUs as the driver's management library (NVML) describes them. Nothing here imports torch."""

from selectbench.nvml.driver import problem
from selectbench.nvml.gpus import Gpu, gpus
from selectbench.nvml.topology import topology

__all__ = ["Gpu", "gpus", "problem", "topology"]
