"""The one table of combinations of choices that can't run, and why; every `unsupported` combination is from it.

Its rules on optimizers, strategies and precisions are test results: a test runs every combination on two ranks and
compares it with one process. Those that raise, or train another algorithm, stand here.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from selectbench.choices.choice import is_own

if TYPE_CHECKING:
    from selectbench.choices import Choices

BITSANDBYTES = frozenset({"lion", "adamw_8bit", "paged_adamw_8bit", "lion_8bit", "ademamix_8bit"})
ZERO = frozenset({"zero 1", "zero 2", "zero 3"})
SHARDED = ZERO | {"fsdp"}
WITHOUT_FP32_WEIGHTS = frozenset({"bf16_master", "bf16_pure"})
OTHER_TASKS = frozenset({"masked_lm", "seq2seq"})
OWN_CODE = "own code"
"""What a rule calls any framework of own code."""
Fact = Literal[
    "adaptation", "framework", "attention", "optimizer", "implementation", "precision", "compile",
    "offload_optimizer", "static_graph", "strategy", "accumulation", "task", "data", "device",
]  # fmt: skip
_YES = frozenset({"yes"})
_SETTINGS = frozenset({"offload_optimizer", "static_graph"})
_UNNAMED = frozenset({"implementation", "accumulation", "device"})
"""Facts that a rule's reason already says in words."""


_OVERWRITTEN = (
    "gradients that are accumulated lie in memory that CUDA graphs may overwrite: take compile default, or a "
    "micro_batch_size of a rank's whole part"
)


@dataclass(frozen=True)
class Situation:
    """What a rule may look at: the choices of an option and the job that it does with them."""

    choices: Choices
    device: str = "cpu"
    micro_batches: int = 1
    """Micro-batches of an optimizer step on each rank."""
    task: str = "causal_lm"
    data: str = "text"
    """The kind of the job's data, `chat` for instance."""

    def facts(self) -> dict[Fact, str]:
        """The facts of the situation, by the names that rules use."""
        chosen, strategy = self.choices, self.choices.strategy
        stage = getattr(strategy, "stage", None)
        yes = {True: "yes", False: "no"}
        return {
            "adaptation": chosen.adaptation.name,
            "framework": OWN_CODE if is_own(chosen.framework.name) else chosen.framework.name,
            "attention": chosen.attention.name, "optimizer": chosen.optimizer.name,
            "implementation": str(getattr(chosen.optimizer, "implementation", None)),
            "precision": chosen.precision.name, "compile": chosen.compile.name,
            "offload_optimizer": yes[getattr(strategy, "offload_optimizer", False)],
            "static_graph": yes[getattr(strategy, "static_graph", False)],
            "strategy": strategy.combines_as or (strategy.name if stage is None else f"{strategy.name} {stage}"),
            "accumulation": yes[self.micro_batches > 1],
            "task": self.task, "data": self.data, "device": self.device,
        }  # fmt: skip


@dataclass(frozen=True)
class Rule:
    """A combination that can't run: every situation in which all the conditions hold."""

    conditions: dict[Fact, Collection[str]]
    """By fact, the values for which the condition holds."""
    reason: str
    """Why it can't run, with what to take instead where there is something."""
    finding: Literal["raises", "differs", "not shown"] = "raises"
    """What a trial of it does: it fails, it silently trains another algorithm, or nobody has yet seen it work."""

    def explanation(self, situation: Situation) -> str:
        """The sentence for the user: `optimizer muon with strategy zero 1: ...`."""
        chosen = situation.choices
        facts = situation.facts() | {"framework": chosen.framework.name}
        if chosen.strategy.combines_as:
            facts["strategy"] = chosen.strategy.name
        named = [name for name in facts if name in self.conditions and name not in _UNNAMED]
        first, *others = [name if name in _SETTINGS else f"{name} {facts[name]}" for name in named]
        return f"{first} with {' and '.join(others)}: {self.reason}" if others else f"{first}: {self.reason}"


RULES: tuple[Rule, ...] = (
    Rule({"attention": {"flash_attention_2"}, "precision": {"fp32", "tf32"}}, "its kernel takes fp16 or bf16"),
    Rule({"adaptation": {"qlora"}, "precision": WITHOUT_FP32_WEIGHTS},
         "a copy of the weights in another dtype undoes the 4 bits: take fp32, bf16_mixed or fp16_mixed"),
    Rule({"adaptation": {"lora", "qlora"}, "strategy": SHARDED}, "take single or ddp", "not shown"),
    Rule({"adaptation": {"lora", "qlora"}, "framework": {"hf_trainer", OWN_CODE}}, "take native", "not shown"),
    Rule({"adaptation": {"lora", "qlora"}, "optimizer": {"muon"}},
         "the additions are matrices alone, which leaves nothing to its AdamW part: take adamw"),
    Rule({"strategy": {"ddp"}, "precision": {"bf16_master"}},
         "DDP keeps no master weights beside the copy that it reduces: fsdp and zero do"),
    Rule({"strategy": {"fsdp"}, "optimizer": BITSANDBYTES},
         "bitsandbytes can't update FSDP2's sharded tensors: zero works"),
    Rule({"strategy": {"fsdp"}, "optimizer": {"adafactor"}},
         "torch's Adafactor can't update FSDP2's sharded tensors"),
    Rule({"strategy": {"fsdp"}, "optimizer": {"sgd"}, "implementation": {"fused"}},
         "torch's fused SGD can't update FSDP2's sharded tensors: set implementation: foreach"),
    Rule({"strategy": ZERO, "optimizer": {"muon"}},
         "DeepSpeed flattens the matrices that muon orthogonalises: ddp and fsdp work"),
    Rule({"strategy": ZERO, "optimizer": {"adafactor"}},
         "DeepSpeed flattens the matrices whose rows and columns adafactor averages, which makes it another "
         "algorithm: ddp works", "differs"),
    Rule({"strategy": ZERO, "optimizer": {"schedule_free_adamw"}},
         "DeepSpeed keeps copies of the weights that its optimizer can't switch to the averaged ones, which are to "
         "be evaluated: ddp and fsdp work"),
    Rule({"strategy": {"zero 3"}, "compile": {"default", "max-autotune"}},
         "torch.compile compiles ZeRO-3's gathering anew for every module until it gives up: zero 1, 2 work"),
    Rule({"strategy": ZERO, "precision": {"bf16_pure"}, "offload_optimizer": _YES},
         "where there are no fp32 master weights DeepSpeed offloads its own Adam only: without offload_optimizer "
         "it works"),
    Rule({"framework": {"hf_trainer", OWN_CODE}, "strategy": SHARDED}, "take single or ddp"),
    Rule({"framework": {"hf_trainer"}, "precision": WITHOUT_FP32_WEIGHTS},
         "it trains fp32 weights, with or without autocast: take fp32, tf32, bf16_mixed or fp16_mixed"),
    Rule({"framework": {OWN_CODE}, "precision": {"bf16_master"}},
         "its master weights need an update that only the native loop makes"),
    Rule({"framework": {"hf_trainer"}, "optimizer": {"muon"}},
         "it takes one optimizer, muon needs a second one for the rest"),
    Rule({"framework": {"hf_trainer"}, "precision": {"fp16_mixed"}, "device": {"cpu"}},
         "on a CPU accelerate silently ignores fp16", "differs"),
    # DDP records the graph in the first step, and then leaves out a reduction (pytorch#143580).
    Rule({"framework": {"hf_trainer"}, "strategy": {"ddp"}, "static_graph": _YES, "accumulation": _YES},
         "gradients that are accumulated come out wrong", "differs"),
    Rule({"framework": {"hf_trainer", OWN_CODE}, "task": OTHER_TASKS}, "the native loop alone trains it"),
    Rule({"framework": {"hf_trainer", OWN_CODE}, "data": {"chat"}},
         "only the native loop trains on a chat's answers alone"),
    # A CUDA graph's gradient lies in the graph's own memory, which its next run overwrites: it must be added to one
    # that exists already (torch._inductor.cudagraph_trees, the message on gradients). `SingleEngine` and DDP have
    # such ones; FSDP, ZeRO-1 and the Trainer begin each step without. No GPU has shown yet that it goes well there.
    Rule({"compile": {"max-autotune"}, "framework": {"hf_trainer"}, "accumulation": _YES, "device": {"cuda"}},
         _OVERWRITTEN, "not shown"),
    Rule({"compile": {"max-autotune"}, "strategy": {"fsdp", "zero 1"}, "accumulation": _YES, "device": {"cuda"}},
         _OVERWRITTEN, "not shown"),
)  # fmt: skip


def rule_against(situation: Situation) -> Rule | None:
    """The first rule that excludes the situation, or None."""
    facts = situation.facts()
    matching = (rule for rule in RULES if all(facts[name] in values for name, values in rule.conditions.items()))
    return next(matching, None)


def combination_reason(situation: Situation) -> str | None:
    """Why the situation's choices can't run together, or None."""
    rule = rule_against(situation)
    return None if rule is None else rule.explanation(situation)
