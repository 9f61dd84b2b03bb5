"""Watching a run's GPUs from outside the worker: before, during and after each trial."""
