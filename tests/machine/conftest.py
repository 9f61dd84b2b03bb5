"""Python under the stand-in for the GPU driver, loaded by the real binding in a process of its own."""

import json
import os
import subprocess
import sys

import forking
import pytest
from stand_in import StandIn

IMPORTED = ("selectbench.doctor", "selectbench.record.environment")


@pytest.fixture
def with_driver(driver_library, tmp_path):
    """Evaluates an expression where the stand-in is the driver; the process must also shut NVML down."""

    def evaluate(expression, *, path=(), script=(), **variables):
        driver = StandIn(tmp_path)
        driver.set(**dict(script))
        base = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
        code = (
            "import json\nfrom dataclasses import asdict\n"
            "from selectbench import machine, doctor\nfrom selectbench.gpu import devices\n"
            "from selectbench.record import environment\n"
            f"print(json.dumps({expression}))"
        )
        paths = {**driver.environment(), "PYTHONPATH": os.pathsep.join(map(str, path))}
        environment = {**base, **paths, **variables}
        if "LD_LIBRARY_PATH" in variables:
            done = subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment
            )
        else:
            (tmp_path / "evaluated.py").write_text(code)
            done = forking.run(IMPORTED, [str(tmp_path / "evaluated.py")], tmp_path, environment, 60)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return json.loads(done.stdout)

    return evaluate


@pytest.fixture
def torch_of(tmp_path):
    """A folder for the module path with a torch of a given build, which fails when it is imported."""

    def build(cuda, version="2.9.0"):
        package, facts = tmp_path / "site" / "torch", tmp_path / "site" / f"torch-{version}.dist-info"
        package.mkdir(parents=True)
        facts.mkdir()
        (package / "__init__.py").write_text("raise RuntimeError('torch was imported')\n")
        (package / "version.py").write_text(
            f"from typing import Optional\n__version__ = {version!r}\ncuda: Optional[str] = {cuda!r}\nhip = None\n"
        )
        (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
        return tmp_path / "site"

    return build
