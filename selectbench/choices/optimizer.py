"""Optimizers: of torch, of bitsandbytes, schedule-free, and of own code."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from selectbench.choices.choice import Choice, Needs, OwnCall, OwnName, OwnSettings, free_of, load

if TYPE_CHECKING:
    import torch


# Optimizers of torch. Weight decay applies to matrices and embeddings only, never to norms and biases.


LearningRate = Annotated[float, Field(gt=0, le=1000)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0, le=1000)]
WarmupFraction = Annotated[float, Field(ge=0, le=1)]
Implementation = Literal["fused", "foreach", "for_loop"]

OPTIMIZER_FIELDS = frozenset({"optimizer", "optimizer_state_dtype", "peak_learning_rate"})
"""Identity fields that follow from the optimizer."""
OWN_WARMUP = "warmup_fraction"
"""The setting that is dumped with an optimizer's others only if it is given."""
SCHEDULE = frozenset({"learning_rate_shape_sha256"})


def decay_groups(
    model: torch.nn.Module, weight_decay: float, *, without: Collection[int] = ()
) -> list[dict[str, object]]:
    """Two parameter groups: matrices and embeddings decay, the others (norms, biases) do not.

    The field's habit since GPT-2 (nanoGPT's `configure_optimizers`); empty groups are left out. `without`: the ids
    of parameters that another optimizer has.
    """
    uses = {id(p): use for p, use in parameter_uses(model) if id(p) not in without}
    parameters = [p for p in trainable(model) if id(p) in uses]
    groups: list[dict[str, object]] = [
        {"params": [p for p in parameters if uses[id(p)] != "other"], "weight_decay": weight_decay},
        {"params": [p for p in parameters if uses[id(p)] == "other"], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def parameter_uses(model: torch.nn.Module) -> Iterator[tuple[torch.nn.Parameter, str]]:
    """Every parameter, tied ones once, and what it is used as: `matrix`, `embedding`, `convolution` or `other`.

    A run of the model has shown it (`worker.observation.ModelBehaviour`): experts' stacked biases and the decay
    rates of a state space are no matrices, however many dimensions they have. A module that did not run in it is
    judged by its class; in a model that was not run so, own code for instance, whatever has two or more dimensions
    is a matrix.
    """
    import torch

    observed = getattr(getattr(model, "behaviour", None), "used_as", {})
    owners = {id(p): module for module in model.modules() for p in module.parameters(recurse=False)}
    find_head: Any = getattr(model, "get_output_embeddings", lambda: None)
    head = find_head()
    for name, parameter in model.named_parameters():
        owner = owners[id(parameter)]
        use = observed.get(name.replace(".base_layer", ""))
        if parameter.ndim < 2:
            use = "other"
        elif isinstance(owner, torch.nn.Embedding) or owner is head:
            use = "embedding"
        elif use is None:
            is_weight = not observed or getattr(owner, "weight", None) is parameter
            use = "other" if not is_weight else "matrix" if parameter.ndim == 2 else "convolution"
        yield parameter, use


def trainable(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Every parameter that the optimizer steps, in the model's order, tied ones once."""
    return [p for p in model.parameters() if p.requires_grad]


class OptimizerChoice(Choice):
    """An optimizer and its settings."""

    may_change: ClassVar[frozenset[str]] = OPTIMIZER_FIELDS
    needs: ClassVar[Needs] = Needs(packages=("torch",))

    lr: LearningRate
    """Peak learning rate; the schedule scales it."""
    weight_decay: NonNegative = 0.1
    """Decay of matrices and embeddings; norms and biases have none."""
    warmup_fraction: WarmupFraction | None = Field(default=None, exclude_if=lambda fraction: fraction is None)
    """Share of all optimizer steps in which the learning rate rises to its peak; the job's warm-up if not given."""

    lr_range: ClassVar[tuple[float, float] | None] = None
    """The lowest and highest peak learning rate that tuning tries if the suite gives no range; None: it must."""
    lr_range_source: ClassVar[str] = ""
    """Where the range comes from."""
    library: ClassVar[str] = "torch.optim"
    """The module that has the class."""
    classes: ClassVar[tuple[str, ...]] = ()
    """Class names of the optimizers that `build` makes, without their implementation; empty: not known here."""
    states: ClassVar[int | None] = None
    """State elements per parameter; None: it depends on the model's shapes."""
    schedule_shape: ClassVar[Literal["constant"] | None] = None
    """The schedule that the optimizer needs after the warm-up, in place of the job's; None: the job's."""

    @property
    def sets_schedule(self) -> bool:
        """Whether the learning rate's shape is another than the job's."""
        return self.schedule_shape is not None or self.warmup_fraction is not None

    def allowed_differences(self) -> frozenset[str]:
        """Also the learning rate's shape if it is the optimizer's own; the certificate checks that separately."""
        return self.may_change | (SCHEDULE if self.sets_schedule else frozenset())

    def build(self, model: torch.nn.Module) -> list[torch.optim.Optimizer]:
        """The optimizers that together step every parameter once: here one, whose arguments are the settings."""
        settings = self.model_dump(by_alias=True, exclude={"name", "lr", "weight_decay", OWN_WARMUP})
        if betas := tuple(settings.pop(name) for name in ("beta1", "beta2", "beta3") if name in settings):
            settings["betas"] = betas
        if (implementation := settings.pop("implementation", None)) is not None:  # both False: a loop in Python
            settings |= {"fused": implementation == "fused", "foreach": implementation == "foreach"}
        kind: Any = getattr(import_module(self.library), self.classes[0])
        return [kind(decay_groups(model, self.weight_decay), lr=self.lr, **settings)]

    def expected_identity(self) -> dict[str, Any]:
        """The optimizers' classes, with the implementation where it can be chosen."""
        implementation = getattr(self, "implementation", None)
        suffix = f"({implementation})" if implementation else ""
        return {"optimizer": [name + suffix for name in self.classes]} if self.classes else {}

    def peak_rates(self) -> tuple[float, ...] | None:
        """The parameter groups' peak learning rates; None: own code decides."""
        return (self.lr,)

    def state_bytes(self, element_bytes: int) -> float | None:
        """Bytes of state per parameter, without master weights and scalars; None: it depends on the model's shapes.

        `element_bytes`: bytes of one element of the tensors that are updated.
        """
        return None if self.states is None else self.states * element_bytes


class Sgd(OptimizerChoice):
    """Stochastic gradient descent with momentum."""

    source: ClassVar[str] = "Sutskever et al. 2013, proceedings.mlr.press/v28/sutskever13; torch.optim.SGD"
    name: Literal["sgd"] = "sgd"
    momentum: Fraction = 0.9
    """Share of the previous update that is kept; 0 is plain SGD."""
    nesterov: bool = False
    """Nesterov's momentum; needs momentum above 0."""
    weight_decay: NonNegative = 0.0
    """L2 penalty on matrices and embeddings."""
    implementation: Implementation = "fused"
    """Which of torch's implementations; foreach adds about one parameter-size to peak memory."""
    lr_range: ClassVar[tuple[float, float] | None] = (3e-2, 3.0)
    lr_range_source: ClassVar[str] = (
        "a hundred times AdamW's: its update is the gradient itself, far smaller than 1 (Zhao et al. 2024, "
        "arXiv:2407.07972, tune SGD apart for that reason)"
    )
    classes: ClassVar[tuple[str, ...]] = ("SGD",)

    def state_bytes(self, element_bytes: int) -> float | None:
        """Bytes of the momentum per parameter; 0 for plain SGD."""
        return element_bytes if self.momentum else 0


class Adam(OptimizerChoice):
    """Adam; weight decay, where given, is the L2 penalty of the original."""

    source: ClassVar[str] = "Kingma and Ba 2015, arXiv:1412.6980; torch.optim.Adam"
    name: Literal["adam"] = "adam"
    beta1: Fraction = 0.9
    """Decay of the first moment."""
    beta2: Fraction = 0.95
    """Decay of the second moment; 0.95 is the habit for language models (Brown et al. 2020)."""
    eps: Annotated[float, Field(gt=0, le=1)] = 1e-8
    """Added to the root of the second moment."""
    weight_decay: NonNegative = 0.0
    """L2 penalty on matrices and embeddings."""
    implementation: Implementation = "fused"
    """Which of torch's implementations; foreach adds about one parameter-size to peak memory."""

    lr_range: ClassVar[tuple[float, float] | None] = (3e-4, 3e-2)
    lr_range_source: ClassVar[str] = (
        "a decade either side of 3e-3: 125 M parameters take 6e-4 (Brown et al. 2020, arXiv:2005.14165, table 2.1) "
        "and small models bear 1e-2 (Wortsman et al. 2023, arXiv:2309.14322, figure 1)"
    )
    classes: ClassVar[tuple[str, ...]] = ("Adam",)
    states: ClassVar[int | None] = 2  # 8 bytes in fp32 (Rajbhandari et al. 2020, arXiv:1910.02054, section 3.1)


class AdamW(Adam):
    """Adam with decoupled weight decay."""

    source: ClassVar[str] = (
        "Loshchilov and Hutter 2019, arXiv:1711.05101; settings of Brown et al. 2020, arXiv:2005.14165"
    )
    also_called: ClassVar[Mapping[str, str]] = dict.fromkeys(("adamwtorch", "adamwtorchfused", "adamwhf"), "adamw")
    name: Literal["adamw"] = "adamw"  # type: ignore[assignment]
    classes: ClassVar[tuple[str, ...]] = ("AdamW",)
    weight_decay: NonNegative = 0.1
    """Decoupled decay of matrices and embeddings."""


class Adafactor(OptimizerChoice):
    """Adafactor: factored second moments, update clipping."""

    source: ClassVar[str] = "Shazeer and Stern 2018, arXiv:1804.04235; torch.optim.Adafactor"
    needs: ClassVar[Needs] = Needs(packages=("torch>=2.5",))
    waits: ClassVar[str | None] = "twice for every parameter in every step"  # its norm's and its update's .item()
    name: Literal["adafactor"] = "adafactor"
    beta2_decay: Annotated[float, Field(ge=-1, le=0)] = -0.8
    """Exponent of the step number in the second moment's decay."""
    clip_threshold: Annotated[float, Field(gt=0, serialization_alias="d")] = 1.0
    """Root mean square above which an update is scaled down."""
    weight_decay: NonNegative = 0.0
    """Decoupled decay of matrices and embeddings."""

    lr_range: ClassVar[tuple[float, float] | None] = (3e-3, 3e-1)
    lr_range_source: ClassVar[str] = (
        "around the relative step of 1e-2 (Shazeer and Stern 2018, arXiv:1804.04235, section 8): it multiplies the "
        "parameters' own size"
    )
    classes: ClassVar[tuple[str, ...]] = ("Adafactor",)
    states: ClassVar[int | None] = 0  # the factors of a matrix grow with the sum of its sides, not their product


class Muon(OptimizerChoice):
    """Muon for the hidden matrices, AdamW for embeddings, output head, norms and biases.

    A fused query-key-value matrix is orthogonalised as one. GPT-2 stores its matrices transposed, so
    the learning rate is matched to AdamW's update size, which does not depend on the orientation.
    """

    source: ClassVar[str] = "Jordan 2024, kellerjordan.github.io/posts/muon; Liu et al. 2025, arXiv:2502.16982"
    needs: ClassVar[Needs] = Needs(packages=("torch>=2.9",))
    name: Literal["muon"] = "muon"
    momentum: Fraction = 0.95
    """Momentum of the matrices."""
    nesterov: bool = True
    """Nesterov's momentum for the matrices."""
    ns_steps: Annotated[int, Field(ge=1, le=20)] = 5
    """Newton-Schulz iterations."""
    adamw_lr: LearningRate | None = None
    """Peak learning rate of the AdamW part; the same as `lr` where it is not given."""
    classes: ClassVar[tuple[str, ...]] = ("Muon", "AdamW(fused)")
    lr_range: ClassVar[tuple[float, float] | None] = (3e-4, 3e-2)
    lr_range_source: ClassVar[str] = (
        "AdamW's, as the update has its size (Liu et al. 2025, arXiv:2502.16982, section 2.2)"
    )

    def peak_rates(self) -> tuple[float, ...]:
        """The matrices' peak learning rate and that of the other parameters."""
        return self.lr, self.adamw_lr or self.lr

    def build(self, model: torch.nn.Module) -> list[torch.optim.Optimizer]:
        """torch.optim.Muon on hidden matrices and a fused torch.optim.AdamW on the rest."""
        import torch

        hidden = hidden_matrices(model)
        rest = decay_groups(model, self.weight_decay, without={id(p) for p in hidden})
        muon = _muon()(
            hidden, lr=self.lr, weight_decay=self.weight_decay, momentum=self.momentum,
            nesterov=self.nesterov, ns_steps=self.ns_steps, adjust_lr_fn="match_rms_adamw",
        )  # fmt: skip
        adamw = torch.optim.AdamW(rest, lr=self.adamw_lr or self.lr, betas=(0.9, 0.95), fused=True)
        return [muon, adamw]


def hidden_matrices(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Matrices, and stacks of them, that are neither an embedding nor the output head, tied or not."""
    return [p for p, use in parameter_uses(model) if p.requires_grad and use == "matrix" and p.ndim in (2, 3)]


@cache
def _muon() -> Any:
    """The Muon of torch, changed to take a stack of matrices, one for each expert, as so many matrices."""
    import torch
    from torch.distributed.tensor import DTensor

    class Muon(torch.optim.Muon):
        def __init__(self, parameters: list[torch.nn.Parameter], **settings: Any) -> None:
            super().__init__([p for p in parameters if p.ndim == 2], **settings)
            self.param_groups[0]["params"] = parameters  # in the model's order

        def _init_group(self, group: Any, params: Any, grads: Any, momenta: Any) -> bool:
            stacked: tuple[list[torch.Tensor], ...] = ([], [], [])
            has_complex = super()._init_group(group, *stacked)
            for matrices, tensors in zip((params, grads, momenta), stacked, strict=True):
                for tensor in tensors:  # FSDP2 shards a stack between its matrices: a rank has whole ones
                    local = tensor.to_local() if isinstance(tensor, DTensor) and tensor.ndim == 3 else tensor
                    matrices += local.unbind() if local.ndim == 3 else [local]
            return has_complex

    return Muon


# Optimizers of bitsandbytes: Lion, and optimizers whose state is kept in 8-bit blocks.


BLOCKWISE = "Dettmers et al. 2022, arXiv:2110.02861"
BLOCK = 256
"""State elements that share a scale, in the versions that are asked for."""


class BitsAndBytesChoice(OptimizerChoice):
    """An optimizer of bitsandbytes; tensors under 4,096 elements keep 32-bit state, as the library does."""

    needs: ClassVar[Needs] = Needs(packages=("bitsandbytes>=0.46",))
    waits: ClassVar[str | None] = "after every parameter in every step"  # Optimizer8bit.step's sync_gpu
    preload: ClassVar[tuple[str, ...]] = ("bitsandbytes",)
    library: ClassVar[str] = "bitsandbytes.optim"
    eight_bit: ClassVar[bool] = True
    lr_range: ClassVar[tuple[float, float] | None] = AdamW.lr_range
    lr_range_source: ClassVar[str] = f"that of the 32-bit optimizer, whose steps it takes ({BLOCKWISE})"

    def state_bytes(self, element_bytes: int) -> float | None:
        """8-bit state: one byte an element and an fp32 scale a block; else fp32, whatever dtype is updated."""
        assert self.states is not None
        return self.states * (1 + 4 / BLOCK if self.eight_bit else 4)


class AdamW8bit(BitsAndBytesChoice):
    """AdamW with 8-bit moments."""

    source: ClassVar[str] = f"{BLOCKWISE}; bitsandbytes.optim.AdamW8bit"
    classes: ClassVar[tuple[str, ...]] = ("AdamW8bit",)
    states: ClassVar[int | None] = 2
    also_called: ClassVar[Mapping[str, str]] = dict.fromkeys(("adamwbnb8bit", "adam8bit"), "adamw_8bit")
    name: Literal["adamw_8bit"] = "adamw_8bit"
    beta1: Fraction = 0.9
    """Decay of the first moment."""
    beta2: Fraction = 0.95
    """Decay of the second moment."""
    eps: Annotated[float, Field(gt=0, le=1)] = 1e-8
    """Added to the root of the second moment."""


class PagedAdamW8bit(AdamW8bit):
    """AdamW with 8-bit moments in pages that can move to host memory; on a CPU nothing is paged."""

    source: ClassVar[str] = "Dettmers et al. 2023, arXiv:2305.14314; bitsandbytes.optim.PagedAdamW8bit"
    waits: ClassVar[str | None] = "after every parameter in every step, and once more at its end"
    classes: ClassVar[tuple[str, ...]] = ("PagedAdamW8bit",)
    also_called: ClassVar[Mapping[str, str]] = dict.fromkeys(("pagedadamw", "pagedadam8bit"), "paged_adamw_8bit")
    name: Literal["paged_adamw_8bit"] = "paged_adamw_8bit"  # type: ignore[assignment]

    def caveat(self, device: str) -> str | None:
        """On a CPU: nothing is paged, since paging is between GPU and host memory."""
        return "nothing is paged on a CPU: its figures are adamw_8bit's" if device == "cpu" else None


class Lion(BitsAndBytesChoice):
    """Lion: the sign of an interpolated momentum; one 32-bit state per parameter."""

    source: ClassVar[str] = "Chen et al. 2023, arXiv:2302.06675; bitsandbytes.optim.Lion32bit"
    classes: ClassVar[tuple[str, ...]] = ("Lion32bit",)
    states: ClassVar[int | None] = 1
    eight_bit: ClassVar[bool] = False
    lr_range: ClassVar[tuple[float, float] | None] = (3e-5, 3e-3)
    lr_range_source: ClassVar[str] = (
        "a tenth of AdamW's: 3 to 10 times smaller is usual (Chen et al. 2023, arXiv:2302.06675, section 5)"
    )
    name: Literal["lion"] = "lion"
    beta1: Fraction = 0.9
    """Weight of the momentum in the update."""
    beta2: Fraction = 0.99
    """Decay of the momentum."""
    weight_decay: NonNegative = 1.0
    """Decoupled decay; the paper uses 3 to 10 times AdamW's with a learning rate as much smaller."""


class Lion8bit(Lion):
    """Lion with 8-bit momentum."""

    source: ClassVar[str] = f"Chen et al. 2023, arXiv:2302.06675; {BLOCKWISE}; bitsandbytes.optim.Lion8bit"
    classes: ClassVar[tuple[str, ...]] = ("Lion8bit",)
    eight_bit: ClassVar[bool] = True
    name: Literal["lion_8bit"] = "lion_8bit"  # type: ignore[assignment]


class AdEMAMix8bit(BitsAndBytesChoice):
    """AdEMAMix with 8-bit moments: AdamW with a second, slow average of the gradient."""

    source: ClassVar[str] = "Pagliardini et al. 2024, arXiv:2409.03137; bitsandbytes.optim.AdEMAMix8bit"
    classes: ClassVar[tuple[str, ...]] = ("AdEMAMix8bit",)
    states: ClassVar[int | None] = 3
    lr_range_source: ClassVar[str] = (
        "AdamW's, as in the paper's comparison (Pagliardini et al. 2024, arXiv:2409.03137)"
    )
    also_called: ClassVar[Mapping[str, str]] = dict.fromkeys(("ademamix",), "ademamix_8bit")
    name: Literal["ademamix_8bit"] = "ademamix_8bit"
    beta1: Fraction = 0.9
    """Decay of the fast first moment."""
    beta2: Fraction = 0.999
    """Decay of the second moment."""
    beta3: Fraction = 0.9999
    """Decay of the slow first moment."""
    alpha: NonNegative = 5.0
    """Weight of the slow moment."""
    eps: Annotated[float, Field(gt=0, le=1)] = 1e-8
    """Added to the root of the second moment."""


# Schedule-free AdamW: an average of the weights stands in for the decay of the learning rate.


SCHEDULE_FREE_INSTALL = "pip install 'selectbench[schedulefree]'"


class ScheduleFreeAdamW(OptimizerChoice):
    """AdamW whose gradients are taken between its iterates and their average, which is what is evaluated.

    After the job's warm-up the learning rate stays at its peak, whatever the job's lr_schedule. Every
    evaluation is of the average. A model with batch norm has its statistics from the training alone.
    """

    source: ClassVar[str] = (
        "Defazio et al. 2024, arXiv:2405.15682; schedulefree.AdamWScheduleFree, its defaults but for weight_decay"
    )
    # Since 1.3 decay in the warm-up goes with the learning rate, as AdamW's.
    needs: ClassVar[Needs] = Needs(packages=("torch", "schedulefree>=1.4"), install=SCHEDULE_FREE_INSTALL)
    library: ClassVar[str] = "schedulefree"
    classes: ClassVar[tuple[str, ...]] = ("AdamWScheduleFree",)
    states: ClassVar[int | None] = 2  # the iterate that gradients move, a second moment; no average beside them
    lr_range: ClassVar[tuple[float, float] | None] = (1e-3, 1e-1)
    lr_range_source: ClassVar[str] = "1 to 10 times AdamW's rate, as the authors advise (schedulefree's README)"
    schedule_shape: ClassVar[Literal["constant"] | None] = "constant"
    also_called: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("schedulefree", "adamwschedulefree"), "schedule_free_adamw"
    )
    name: Literal["schedule_free_adamw"] = "schedule_free_adamw"
    lr: LearningRate
    """Learning rate from the end of the warm-up on; 1 to 10 times AdamW's peak, by the library's authors."""
    beta1: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """Share of the average in the point at which gradients are taken; 0.95 or 0.98 for very long trainings."""
    beta2: Fraction = 0.999
    """Decay of the second moment."""
    eps: Annotated[float, Field(gt=0, le=1)] = 1e-8
    """Added to the root of the second moment."""
    weight_decay: NonNegative = 0.1
    """Decay of matrices and embeddings, of the point at which gradients are taken."""

    def caveat(self, device: str) -> str | None:
        """Its schedule is not the job's, and its training losses are of other weights than its evaluations."""
        return (
            "schedule_free_adamw keeps its learning rate after the warm-up, where others follow the job's "
            "lr_schedule; evaluations are of its averaged weights, losses in training of those that it trains at"
        )


class OwnOptimizer(OptimizerChoice):
    """An optimizer of your own: `Class(parameter_groups, lr=lr, **settings)`.

    The groups carry weight_decay, as torch's optimizers take it. A function that returns an optimizer, or a
    list of them that together step every parameter once, serves too.
    """

    source: ClassVar[str] = "your own code"
    name: OwnName
    """`package.module:Class`, importable from a folder of the suite's `code`, or installed."""
    settings: Annotated[OwnSettings, free_of("params", "lr", "weight_decay")] = Field(default_factory=dict)
    """More keyword arguments."""

    @property
    def call(self) -> OwnCall:
        """How `build` calls it."""
        return OwnCall("optimizer", self.name, ("parameter_groups",), ("lr", *self.settings))

    def peak_rates(self) -> None:
        """Not known: own code may scale `lr` as it likes."""

    def build(self, model: torch.nn.Module) -> list[torch.optim.Optimizer]:
        """The class's instance, or what the function returns. Raises OwnCodeError, TypeError."""
        import torch

        groups = decay_groups(model, self.weight_decay)
        returned = load(self.name, "optimizer")(groups, lr=self.lr, **self.settings)
        optimizers = list(returned) if isinstance(returned, list | tuple) else [returned]
        for optimizer in optimizers:
            if not isinstance(optimizer, torch.optim.Optimizer):
                kind = type(optimizer).__name__
                raise TypeError(f"optimizer {self.name}: expected a torch.optim.Optimizer, it made a {kind}")
        expected = [id(p) for p in trainable(model)]
        actual = [id(p) for o in optimizers for group in o.param_groups for p in group["params"]]
        if sorted(actual) != sorted(expected):
            raise TypeError(
                f"optimizer {self.name}: every parameter must be stepped once; of {len(expected)} it has "
                f"{len(set(actual) & set(expected))}, {len(actual)} entries in all"
            )
        return optimizers


OPTIMIZERS: tuple[type[Choice], ...] = (
    Sgd, Adam, AdamW, Adafactor, Lion, Muon, AdamW8bit, PagedAdamW8bit, Lion8bit, AdEMAMix8bit,
    ScheduleFreeAdamW, OwnOptimizer,
)  # fmt: skip
