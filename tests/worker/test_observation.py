"""What is counted and tried beside a training, part by part."""

import math
import os
import random
import sys

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from selectbench.choices.choice import add_to_path, load
from selectbench.worker.batches import Batch
from selectbench.worker.evaluation import Forward
from selectbench.worker.observation import CoreWaits, causality, own_files, rate_effect, xz_bits_per_byte


def small_gpt2(**settings):
    return GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=2, n_head=2, **settings))


def batch_of(rows, length=12):
    ids = torch.randint(0, 50, (rows, length + 1))
    return Batch(ids, (ids[:, :-1],), {}, ids[:, 1:])


class Counting(torch.nn.Module):
    """Adds noise and counts its calls in a buffer, as routers and norms do."""

    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(50, 50)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, ids):
        self.calls += 1
        return self.embed(ids) + torch.rand(()) + self.calls


@pytest.mark.parametrize("rows", [1, 3])
@torch.no_grad()
def test_dropout_noise_and_counters_are_no_leak_and_are_left_as_they_were(rows):
    for module in (small_gpt2(resid_pdrop=0.3), Counting()):
        module.train()
        batch, before = batch_of(rows), torch.get_rng_state()
        state = {name: value.clone() for name, value in module.state_dict().items()}
        found = causality(Forward(module, {}), batch)
        assert found == {"training": 0.0, "evaluation": 0.0}
        assert torch.equal(torch.get_rng_state(), before)
        assert module.training
        assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())


class Ahead(torch.nn.Module):
    """Each logit knows the token so many places later."""

    def __init__(self, places):
        super().__init__()
        self.embed, self.places = torch.nn.Embedding(50, 50), places

    def forward(self, ids):
        return self.embed(ids) + self.embed(ids.roll(-self.places, dims=1))


@pytest.mark.parametrize("places", [1, 5])
@pytest.mark.parametrize("rows", [1, 4])
@torch.no_grad()
def test_a_look_ahead_is_seen_however_far(rows, places):
    found = causality(Forward(Ahead(places), {}), batch_of(rows))
    assert min(found.values()) > 0.1


class Undecided(torch.nn.Module):
    def forward(self, ids):
        return torch.full((*ids.shape, 50), random.random())


@torch.no_grad()
def test_of_a_model_that_answers_anew_each_time_nothing_is_told():
    assert causality(Forward(Undecided(), {}), batch_of(2)) is None


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.Adagrad, torch.optim.RMSprop])
def test_an_honest_optimizer_follows_its_rate(kind):
    module = small_gpt2()
    assert rate_effect([kind(module.parameters(), lr=1e-3)], [1e-3]) > 100


def test_waits_are_those_of_threads_in_timed_windows(tmp_path):
    def thread(number, wait):
        task = tmp_path / "self/task" / number
        task.mkdir(parents=True, exist_ok=True)
        (task / "schedstat").write_text(f"999 {wait} 7\n")

    waits = CoreWaits(tmp_path)
    thread("1", 5_000_000_000)
    waits.begin()
    thread("1", 7_000_000_000)
    waits.end(is_timed=False)
    assert waits.use.waited_seconds == 0
    waits.begin()
    thread("1", 8_000_000_000)
    thread("2", 500_000_000)  # it began in the window
    waits.end(is_timed=True)
    assert waits.use.waited_seconds == pytest.approx(1.5)


def test_the_work_of_cores_is_all_but_idle_and_only_of_those_that_may_be_used(tmp_path):
    mine, ticks = min(os.sched_getaffinity(0)), os.sysconf("SC_CLK_TCK")

    def cores(busy):
        idle_and_others = f"cpu  1 1 1 1 1 1 1 1 0 0\ncpu9999 {10**9} 0 0 0 0 0 0 0 0 0\n"
        (tmp_path / "stat").write_text(f"{idle_and_others}cpu{mine} {busy * ticks} 0 0 {10**9} 0 0 0 {ticks} 0 0\n")

    waits = CoreWaits(tmp_path)
    cores(3)
    waits.begin()
    cores(7)
    waits.end(is_timed=True)
    assert waits.use.cores_seconds == pytest.approx(4)


def test_a_system_that_tells_no_waits_tells_work_and_switches(tmp_path):
    waits = CoreWaits(tmp_path / "nothing")
    waits.begin()
    sum(range(2_000_000))
    waits.end(is_timed=True)
    assert math.isnan(waits.use.waited_seconds)
    assert math.isnan(waits.use.cores_seconds)
    assert waits.use.worked_seconds > 0
    assert waits.use.switches >= 0


def test_xz_is_of_the_text_and_nothing_is_said_of_little_of_it():
    draw = random.Random(0)
    text = "".join(draw.choice("abcdefgh") for _ in range(20_000))
    found = xz_bits_per_byte([0] * 20_000, lambda ids: text[: len(ids)])
    assert 3 < found < 4  # eight letters are three bits
    assert xz_bits_per_byte([0] * 2_000, lambda ids: text[: len(ids)]) is None


def test_files_of_own_code_are_those_that_were_imported(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    package = tmp_path / "ourwatched"
    package.mkdir()
    for name in ("__init__", "used", "unused"):
        (package / f"{name}.py").write_text("def f(): pass\n")
    (package / "log.txt").write_text("0")
    add_to_path([str(tmp_path)])
    load("ourwatched.used:f")
    first = own_files([str(tmp_path)])
    assert set(first) == {"ourwatched/__init__.py", "ourwatched/used.py"}
    (package / "log.txt").write_text("1")
    assert own_files([str(tmp_path)]) == first
    assert own_files([]) is None
