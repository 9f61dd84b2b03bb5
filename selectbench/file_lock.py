"""A lock on an open file (flock): the kernel lets go of it when the process that holds it ends, however it ends.

Only what trains takes one, and that needs Linux: elsewhere the module can be imported, and no more.
"""

from __future__ import annotations


def lock(descriptor: int, *, wait: bool) -> bool:
    """Lock the open file until its descriptor is closed; `wait`: for whoever has it, else False is returned then.

    Raises OSError.
    """
    import fcntl  # Windows has none

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
