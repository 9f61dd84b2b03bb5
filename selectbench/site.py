"""The site file: what of a run is the machine's and not the question's. Every mistake is told with its place."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from selectbench.choices.choice import Strict
from selectbench.errors import UserError
from selectbench.suite.document import Problems, read_document
from selectbench.suite.problems import validate
from selectbench.suite.suite import Cost, Suite

Lanes = Literal["auto"] | Annotated[int, Field(ge=1, le=1024)]


class Site(Strict):
    """Where runs run."""

    lanes: Lanes = 1
    """Equal parts of the machine that run trials side by side; auto: as many as its GPUs are enough for."""
    cost: Cost | None = None
    """Prices, in place of the suite's; null: the suite's."""

    def over(self, suite: Suite) -> Suite:
        """The suite at this site's prices."""
        if self.cost is None:
            return suite
        resolved = {**suite.resolved, "cost": self.cost.model_dump(mode="json", exclude_none=True)}
        return suite.model_copy(update={"cost": self.cost, "resolved": resolved})


def read_site(path: str | None, lanes: str | None) -> Site:
    """The file's site, or one machine as it is. Raises UserError with every mistake.

    `lanes`: of the command line.
    """
    site = Site()
    if path is not None:
        problems = Problems()
        found = validate(Site, read_document(Path(path)), problems)
        problems.raise_if_any()
        assert isinstance(found, Site)
        site = found
    if lanes is None:
        return site
    if lanes != "auto" and not (lanes.isdecimal() and 1 <= int(lanes) <= 1024):
        raise UserError(f"--lanes {lanes}: expected auto, or a number from 1 to 1024")
    return site.model_copy(update={"lanes": lanes if lanes == "auto" else int(lanes)})
