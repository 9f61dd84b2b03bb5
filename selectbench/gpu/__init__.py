"""The GPUs of a machine: what their driver says of them, and the readings of a run."""
