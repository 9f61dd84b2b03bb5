"""What own code may not do: each cheat of a real trial is accused or said to be unverified, honest code is not."""

from __future__ import annotations

import pytest
from made_records import entries

from selectbench.analysis.ranking import rank
from selectbench.analysis.result import NotVerified
from selectbench.analysis.watched import PROCESS
from selectbench.record.record import Completed, Record
from selectbench.suite.suite import Option, Suite

CHEATS = '''
import gc
import time

import torch
from torch.nn.functional import cross_entropy
from transformers import GPT2LMHeadModel

from selectbench.worker import recorder
from selectbench.worker.batches import Batch
from selectbench.worker.loop import OptimizerStep, Setting

AdamW = torch.optim.AdamW


def setting():
    return next(found for found in gc.get_objects() if isinstance(found, Setting))


class TwoUpdates(AdamW):
    def step(self, closure=None):
        super().step()
        super().step()


class IgnoresRate(AdamW):
    def step(self, closure=None):
        rates = [group["lr"] for group in self.param_groups]
        for group in self.param_groups:
            group["lr"] = 3e-3
        super().step()
        for group, rate in zip(self.param_groups, rates):
            group["lr"] = rate


class FreezesLayers(AdamW):
    def step(self, closure=None):
        first = self.param_groups[0]["params"][:4]
        kept = [p.grad for p in first]
        for p in first:
            p.grad = None
        super().step()
        for p, grad in zip(first, kept):
            p.grad = grad


class NeverUpdates(AdamW):
    def step(self, closure=None):
        pass


class SlowClock(AdamW):
    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        real, then = time.perf_counter, time.perf_counter()
        time.perf_counter = lambda: then + (real() - then) / 2


class PatchesTheEvaluation(AdamW):
    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        recorder.evaluation.heldout_loss = lambda *_, **__: 0.5


def backward(ids):
    logits = setting().module(ids[:, :-1]).logits
    cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()


class TrainsOnTheHeldOutSet(AdamW):
    def step(self, closure=None):
        backward(setting().held_out.batch(0, 8).tokens)
        super().step()


class ReadsAhead(AdamW):
    def step(self, closure=None):
        self.steps = getattr(self, "steps", 0) + 1
        batches = setting().batches
        backward(batches.sequences_at(batches.sample_indices(self.steps)))
        super().step()


class AnEighthOfTheBatch(AdamW):
    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        real = OptimizerStep._micro_batch
        OptimizerStep._micro_batch = lambda self, batch, counted, *others: real(
            self, Batch(batch.tokens, (batch.arguments[0][:1],), {}, batch.targets[:1]), counted // 8, *others
        )


class FitsTheEvaluationSet(AdamW):
    def train(self):
        pass

    def eval(self):
        for _ in range(3):
            self.zero_grad()
            backward(setting().held_out.batch(0, 8).tokens)
            super().step()


class Honest(AdamW):
    """Built on another class's step, which counts once."""

    def step(self, closure=None):
        return super().step(closure)


class SignMomentum(torch.optim.Optimizer):
    def __init__(self, params, lr, weight_decay=0.0):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.state[p].setdefault("momentum", torch.zeros_like(p)).lerp_(p.grad, 0.1)
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(self.state[p]["momentum"].sign(), alpha=-group["lr"])


def z_loss(logits, targets):
    entropy = cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    return entropy + 1e-4 * logits.logsumexp(dim=-1).square().sum()


LOOP = """
def train(trial):
    for step in trial.steps():
        loss = torch.zeros(())
        for inputs, targets, is_last in step.micro_batches():
            seen, wanted = CUT
            part = trial.loss(trial.model(seen).logits, wanted) / trial.tokens_per_step
            part.backward()
            loss += part.detach()
        norm = torch.nn.utils.clip_grad_norm_(trial.parameters, trial.clip_norm)
        for optimizer in trial.optimizers:
            optimizer.step()
        step.done(loss=loss, gradient_norm=norm)
"""
cuts = {
    "honest_loop": "inputs, targets",
    "lazy_loop": "inputs[:1], targets[:1]",
    "stale_loop": "inputs * 0 + inputs[:1], targets",
}
for name, cut in cuts.items():
    exec(LOOP.replace("CUT", cut).replace("train", name))


class Embeds(torch.nn.Module):
    """Each position knows the mean of what came before; `mean` may be of more."""

    def __init__(self, vocab_size, seq_len, leaks=""):
        super().__init__()
        self.embed = torch.nn.Embedding(vocab_size, 16)
        self.head = torch.nn.Linear(16, vocab_size)
        self.leaks = leaks

    def forward(self, ids):
        here = self.embed(ids)
        count = torch.arange(1, ids.shape[1] + 1)[:, None]
        known = here.cumsum(dim=1) / count
        if self.leaks == "mask":
            known = here.mean(dim=1, keepdim=True).expand_as(here)
        logits = self.head(known)
        if self.leaks == "next" and not self.training:
            logits = logits.clone()
            logits[:, :-1] += 20 * torch.nn.functional.one_hot(ids[:, 1:], logits.shape[-1])
        return logits
'''
ACCUSED = {
    "TwoUpdates": "updates",
    "IgnoresRate": "learning_rate",
    "FreezesLayers": "updates",
    "NeverUpdates": "updates",
    "SlowClock": "clock",
    "PatchesTheEvaluation": "evaluation",
    "TrainsOnTheHeldOutSet": "sequences",
    "ReadsAhead": "sequences",
    "AnEighthOfTheBatch": "sequences",
    "FitsTheEvaluationSet": "sequences",
}
HONEST = {"AdamW": {}, "Honest": {}, "SignMomentum": {}, "z_loss": {}, "honest_loop": {}}


class Ranked:
    """Runs options and ranks them as a suite of one seed."""

    def __init__(self, trials):
        self.trials, self.code = trials, trials.trial_folder / "code"
        self.code.mkdir()
        (self.code / "cheats.py").write_text(CHEATS)

    def rows(self, options, job=None, change=lambda name: None):
        rows, records = [], []
        for name, choices in options.items():
            change(name)
            order = self.trials.order(job=job, option=name, code=[str(self.code)], **choices)
            end = self.trials.run(order)
            assert isinstance(end.outcome, Completed), end.outcome
            rows.append(Option(name=name, choices=order.choices, differs_in=[]))
            records.append(Record(
                trial=order.trial, round=0, outcome=end.outcome, identity=end.finished.identity,
                watched=end.finished.watched, wall_seconds=end.wall_seconds, started_at="2026-01-01T00:00:00Z",
            ))  # fmt: skip
        suite = Suite.model_validate(
            {"name": "cheats", "question": "?", "profile": None, "device": "cpu", "job": order.job.model_dump(),
             "options": rows, "baseline": rows[0].name, "seeds": [0], "decide": {"constraints": []}, "limits": {},
             "resolved": {}}
        )  # fmt: skip
        ranking = rank(suite, records)
        return {row.option: row for row in ranking.rows}, ranking, {r.trial.option: r for r in records}


@pytest.fixture(scope="module")
def ranked(launched_for_all):
    return Ranked(launched_for_all)


def optimizer(name):
    return {"optimizer": {"name": f"cheats:{name}", "lr": 3e-3}}


@pytest.fixture(scope="module")
def cheats(ranked):
    """Rows, ranking and records of a built-in baseline, all cheating optimizers and honest own code."""
    return ranked.rows({
        "built_in": {},
        **{name: optimizer(name) for name in ACCUSED},
        **{name: optimizer(name) for name in ("AdamW", "Honest", "SignMomentum")},
        "z_loss": {"loss": "cheats:z_loss"},
        **{name: {"framework": f"cheats:{name}"} for name in ("honest_loop", "lazy_loop", "stale_loop")},
    })  # fmt: skip


@pytest.mark.parametrize("cheat", ACCUSED)
def test_a_cheating_optimizer_is_accused_of_what_it_does(cheats, cheat):
    row = cheats[0][cheat]
    follows = {"first_step_loss", "first_step_gradient_norm"}  # of fewer sequences
    assert {v.field for v in row.identity.violations} - follows == {ACCUSED[cheat]}
    assert row.rank is None
    assert not row.identity.comparable


@pytest.mark.parametrize("cheat", ["lazy_loop", "stale_loop"])
def test_a_loop_that_trains_on_other_sequences_than_it_was_handed_is_accused(cheats, cheat):
    assert "sequences" in [v.field for v in cheats[0][cheat].identity.violations]


@pytest.mark.parametrize("name", [*HONEST])
def test_honest_own_code_is_not_accused_and_what_nobody_saw_of_it_is_said(cheats, name):
    row = cheats[0][name]
    assert row.identity.violations == []
    assert NotVerified(field=PROCESS[0], reason=PROCESS[1]) in row.identity.not_verified
    assert name in cheats[1].answer.partition("Not verified for ")[2]


def test_what_is_built_in_has_nothing_unverified_and_what_was_counted_is_verified(cheats):
    rows, ranking, records = cheats
    assert rows["built_in"].identity.not_verified == []
    assert "built_in" not in ranking.answer.partition("Not verified for ")[2]
    assert records["built_in"].watched.own == []
    assert records["AdamW"].watched.evaluations_seen == records["AdamW"].watched.evaluations > 0
    assert entries(rows["AdamW"].identity) == [
        "own code: what it changes in its trial's process",
        "own optimizer: what else its step() and eval() do",
    ]
    assert not {"token_stream_sha256", "tokens_per_step"} & set(entries(rows["honest_loop"].identity))


def test_steps_applied_are_counted(cheats):
    assert {r.identity.steps_applied for r in cheats[2].values()} == {8}


@pytest.mark.parametrize(("leak", "mode"), [("next", "evaluation"), ("mask", "training"), ("", None)])
def test_a_model_that_knows_later_tokens_is_accused(ranked, leak, mode):
    model = {"family": "cheats:Embeds", "settings": {"leaks": leak}}
    rows, _, records = ranked.rows({"built_in": {}, "again": {}}, job={"model": model})
    assert set(records["again"].watched.causality) == {"training", "evaluation"}
    for row in rows.values():  # the baseline no less than the others
        found = [v.option for v in row.identity.violations if v.field == "causality"]
        assert len(found) == (mode is not None)
        assert mode is None or found[0].endswith(f"in {mode} mode")
        assert "own model: what else its forward pass does" in entries(row.identity)


SHARED = {"world_size": 2, "micro_batch_size": 4}


@pytest.mark.parametrize(
    "choices",
    [
        {**SHARED, "strategy": "ddp"}, {**SHARED, "strategy": "fsdp"},
        {**SHARED, "strategy": {"name": "zero", "stage": 3}}, {"framework": "hf_trainer"},
        {"precision": "bf16_pure"}, {"precision": "fp16_mixed"},
    ],
    ids=str,
)  # fmt: skip
def test_honest_own_code_is_watched_wherever_it_runs(ranked, choices):
    rows, _, records = ranked.rows({"own": {**optimizer("Honest"), **choices}})
    watched = records["own"].watched
    assert max(watched.causality.values()) < 1e-6
    assert set(watched.causality) == {"training", "evaluation"}
    steps = 2 + records["own"].outcome.measurement.timed_steps  # two of them warm up
    assert watched.sequences_given == watched.sequences_seen == 8 * steps
    assert rows["own"].identity.violations == []
    unseen = {"steps_applied", "learning_rate_shape_sha256"} & set(entries(rows["own"].identity))
    expected = {"fp16_mixed": {"steps_applied"}, "ddp": set(), "hf_trainer": set()}
    # Sharded weights and those in bf16 are not compared.
    assert unseen == expected.get(str([*choices.values()][-1]), {"steps_applied", "learning_rate_shape_sha256"})


def test_a_log_beside_the_code_is_none_of_it_and_a_changed_module_is_named(ranked):
    options = {name: {"loss": "cheats:z_loss"} for name in ("first", "second", "third")}

    def change(name):
        (ranked.code / "log.txt").write_text(name)
        if name == "third":
            (ranked.code / "cheats.py").write_text(f"{CHEATS}\nCHANGED = True\n")

    rows, _, records = ranked.rows(options, change=change)
    assert set(records["first"].watched.code_files) == {"cheats.py"}
    assert rows["first"].identity.violations == rows["second"].identity.violations == []
    (violation,) = rows["third"].identity.violations
    assert (violation.field, violation.option) == ("code", "changed: cheats.py")
