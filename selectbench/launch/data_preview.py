"""What `data` shows: a suite's data, prepared by themselves."""

from __future__ import annotations

from collections.abc import Callable

from selectbench.data.enough import evaluable_tokens
from selectbench.data.look import Look, look
from selectbench.data.prepared import Prepared
from selectbench.launch.preparation import Request, prepare_data, resolve, way_without_network
from selectbench.plan.warnings import heldout_warnings


def prepared_data(request: Request, notify: Callable[[str], None]) -> list[tuple[Prepared, list[str], Look]]:
    """Each distinct preparation with the options that read it. Raises UserError for a wrong suite or unfit data."""
    suite, _ = resolve(request)
    with way_without_network(request):
        by_option = prepare_data(suite, notify)
    options: dict[str, list[str]] = {}
    for name, prepared in by_option.items():
        options.setdefault(prepared.key, []).append(name)
    heldout = {name: evaluable_tokens(prepared, suite.job) for name, prepared in by_option.items()}
    for line in heldout_warnings(suite, heldout):
        notify(f"note: {line}")
    made = {prepared.key: prepared for prepared in by_option.values()}
    return [(made[key], names, look(made[key])) for key, names in options.items()]
