"""selectbench: the same training job under each choice, measured on your own machine."""

__version__ = "0.1.0"
