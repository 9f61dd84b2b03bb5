"""How long threads of an OpenMP library wait awake for their next piece of work, which other processes pay for."""

from __future__ import annotations

from collections.abc import Mapping

SHORT_WAIT = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "1"}
"""What CPU trials are given: turns of libgomp's waiting loop, some microseconds in all, and whole milliseconds of
libomp and libiomp5.

By default libgomp takes 300,000 turns and the others wait for 200 ms. Where the cores have other work too, a thread
that waits awake for one that is not being run takes the core that this one needs.
"""
WAIT_VARIABLES = ("OMP_WAIT_POLICY", *SHORT_WAIT)
"""Each of them settles how threads wait."""


def short_wait(environment: Mapping[str, str], device: str) -> dict[str, str]:
    """What trials on `device`, cpu or cuda, get beside this environment; nothing where the user has settled it.

    Libraries read it when they are loaded: it has to be there before torch is imported.
    """
    settled = any(name in environment for name in WAIT_VARIABLES)
    return dict(SHORT_WAIT) if device == "cpu" and not settled else {}
