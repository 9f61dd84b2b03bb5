"""What holds a GPU, in words."""

from __future__ import annotations

from selectbench import units
from selectbench.nvml.idle import Tenant, Use


def tenant_text(tenant: Tenant) -> str:
    """`pid 4711 (python) holds 3.2 GiB`, as far as it is known."""
    name = f" ({tenant.name})" if tenant.name else ""
    holds = f" holds {units.size(tenant.memory_bytes)}" if tenant.memory_bytes else ""
    return f"pid {tenant.pid}{name}{holds}"


def tenants_text(use: Use) -> str:
    """Everyone on it, or that nobody can be seen."""
    return ", ".join(map(tenant_text, use.tenants)) or "held by what can't be seen from here"
