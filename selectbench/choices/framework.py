"""Which training loop runs the job. Each class names a function of the worker, `module:function`."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from selectbench.choices.choice import Choice, Needs, OwnName

ACCELERATE_INSTALL = "pip install 'selectbench[accelerate]'"


class FrameworkChoice(Choice):
    """A training loop."""

    needs: ClassVar[Needs] = Needs(packages=("torch",))
    may_change: ClassVar[frozenset[str]] = frozenset({"framework"})


class Native(FrameworkChoice):
    """selectbench's own loop."""

    source: ClassVar[str] = "a plain PyTorch training loop"
    loop: ClassVar[str] = "selectbench.worker.loop:train"
    name: Literal["native"] = "native"

    def asks_for(self) -> dict[str, Any]:
        """As the loop calls itself."""
        return {"framework": "native"}


class HfTrainer(FrameworkChoice):
    """transformers' Trainer, on the same token stream, schedule and evaluation."""

    source: ClassVar[str] = "huggingface.co/docs/transformers/main_classes/trainer"
    needs: ClassVar[Needs] = Needs(
        packages=("torch", "transformers", "accelerate>=1.1"), install=ACCELERATE_INSTALL
    )
    waits: ClassVar[str | None] = "twice for every micro-batch"  # logging_nan_inf_filter, on by default
    # accelerate imports DeepSpeed wherever it is installed.
    preload: ClassVar[tuple[str, ...]] = ("selectbench.worker.hf_trainer", "selectbench.worker.engine_zero")
    loop: ClassVar[str] = "selectbench.worker.hf_trainer:train"
    name: Literal["hf_trainer"] = "hf_trainer"

    def asks_for(self) -> dict[str, Any]:
        """The class that ran the steps."""
        return {"framework": "transformers.Trainer"}


class OwnFramework(FrameworkChoice):
    """A training loop of your own, given the trial's model, batches and recorder."""

    source: ClassVar[str] = "your own code"
    name: OwnName
    """`package.module:function`, importable from a folder of the suite's `code`, or installed."""

    @property
    def loop(self) -> str:
        """The name itself."""
        return self.name
