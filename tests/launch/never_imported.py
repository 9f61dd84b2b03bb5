"""A module whose import does not end."""

import signal

print("it begins", flush=True)
signal.pause()
