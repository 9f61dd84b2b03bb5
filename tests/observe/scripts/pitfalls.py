"""What scripts do that an observer may fall into, each in a child of one process that has imported torch."""

from __future__ import annotations

import atexit
import copy
import gc
import os
import time
import weakref

import safetensors.torch
import torch
import torch._dynamo  # by the first update of each child otherwise, which takes two seconds
import torch.nn.functional as F  # noqa: N812
from models import VOCABULARY, Core, Past, rows
from torch import nn

STEPS = 4


class Whole(Past):
    """Holds more than its core does."""

    def forward(self, tokens):
        return self.logits(tokens)


class Hidden(Core):
    """Leaves the last product to its script."""

    def forward(self, idx):
        return torch.relu(self.middle(self.embedding(idx)))


class Renamed(nn.Module):
    """The core, as a framework wraps and casts it."""

    def __init__(self) -> None:
        super().__init__()
        self.engine = Core()
        self.to(torch.bfloat16)

    def forward(self, idx):
        return self.engine(idx)


class Container(torch.optim.Optimizer):
    """Holds all parameters and lets an optimizer for each update them."""

    def __init__(self, parameters, **settings) -> None:
        parameters = list(parameters)
        self.inner = [torch.optim.AdamW([p], **settings) for p in parameters]
        super().__init__(parameters, settings)

    def step(self, closure=None):
        for inner in self.inner:
            inner.step()


def start(kind=Core, optimizer=torch.optim.AdamW):
    torch.manual_seed(0)
    model = kind()
    return model, optimizer(model.parameters(), lr=1e-2)


def loss_of(logits, part):
    return F.cross_entropy(logits.float().reshape(-1, VOCABULARY), part[:, 1:].reshape(-1))


def train(model, optimizer, steps=None, update=None, after=lambda number: None):
    for number, part in enumerate(steps or rows(4 * STEPS).split(4)):
        loss_of(model(part[:, :-1]), part).backward()
        (update or optimizer.step)()
        optimizer.zero_grad()
        after(number)


def plain():
    model, optimizer = start()
    train(model, optimizer)
    seen = weakref.ref(model), weakref.ref(optimizer)
    del model, optimizer
    gc.collect()
    print(f"kept {[one() is not None for one in seen]}", flush=True)


def part_first():
    model, optimizer = start(Whole)
    model.core(rows(4)[:, :-1]).sum().backward()
    optimizer.zero_grad()
    train(model, optimizer)


def step_in_a_function():
    model, optimizer = start()
    train(model, optimizer, update=torch.compile(lambda: optimizer.step(), backend="eager"))


def on_meta():
    model, _ = start()
    other = copy.deepcopy(model).to("meta")
    others = torch.optim.AdamW(other.parameters())
    other(rows(4)[:, :-1].to("meta")).sum().backward()
    others.zero_grad()
    train(model, torch.optim.AdamW(model.parameters(), lr=1e-2))


def last_in_a_closure():
    model, optimizer = start()
    for whole in rows(4 * STEPS).split(4):
        optimizer.zero_grad()
        first, last = whole.split(2)
        (loss_of(model(first[:, :-1]), first) / 2).backward()

        def closure(last=last):
            loss = loss_of(model(last[:, :-1]), last) / 2
            loss.backward()
            return loss

        optimizer.step(closure)


def hidden_states():
    model, optimizer = start(Hidden)
    for part in rows(4 * STEPS).split(4):
        loss_of(model.head(model(part[:, :-1])), part).backward()
        optimizer.step()
        optimizer.zero_grad()


def in_chunks():
    model, optimizer = start()
    for part in rows(4 * STEPS).split(4):
        logits, targets = model(part[:, :-1]), part[:, 1:]
        for some, theirs in zip(logits.split(8, 1), targets.split(8, 1), strict=True):
            loss = F.cross_entropy(some.reshape(-1, VOCABULARY), theirs.reshape(-1)) / 2
            loss.backward(retain_graph=True)
        optimizer.step()
        optimizer.zero_grad()


def shifted():
    model, optimizer = start()
    for part in rows(4 * STEPS).split(4):
        logits = model(part[:, :-1])[:, :-1]
        F.cross_entropy(logits.reshape(-1, VOCABULARY), part[:, 1:-1].reshape(-1)).backward()
        optimizer.step()
        optimizer.zero_grad()


def of_some():
    model, optimizer = start()
    for part in rows(4 * STEPS).split(4):
        logits = model(part[:, :-1])[:, :8]
        F.cross_entropy(logits.reshape(-1, VOCABULARY), part[:, 1:9].reshape(-1)).backward()
        optimizer.step()
        optimizer.zero_grad()


def nested():
    train(*start(optimizer=Container))


def renamed():
    train(*start(Renamed))


def workers():
    loaders = [
        torch.utils.data.DataLoader(rows(8), batch_size=4, num_workers=1, multiprocessing_context=way)
        for way in ("fork", "spawn")
    ]
    model, optimizer = start()
    train(model, optimizer, [part for loader in loaders for part in loader])


def in_backward():
    torch.manual_seed(0)
    model = Core()
    for parameter in model.parameters():
        own = torch.optim.AdamW([parameter], lr=1e-2)

        def update(parameter, own=own):
            own.step()
            own.zero_grad()

        parameter.register_post_accumulate_grad_hook(update)
    for part in rows(4 * STEPS).split(4):
        loss_of(model(part[:, :-1]), part).backward()


def pauses():
    model, optimizer = start()

    def saves(number):
        if number == 1:
            torch.save(model.state_dict(), "kept.pt")
            time.sleep(0.2)
        if number == 0:
            safetensors.torch.save_file(model.state_dict(), "kept.safetensors")
            time.sleep(0.2)
        if number == 2:
            model.eval()
            time.sleep(0.2)
            model.train()

    train(model, optimizer, after=saves)


def looked_at():
    """Forwards with gradients that nothing goes backward through, with other arguments too."""
    model, optimizer = start()
    other = rows(8)[:4, :-1]
    model(other).sum().item()
    train(model, optimizer, after=lambda number: model(idx=other).sum().item())


def other_targets():
    model, optimizer = start()
    for number, part in enumerate(rows(4 * STEPS).split(4)):
        logits, targets = model(part[:, :-1]), part[:, 1:] if number < 2 else torch.zeros_like(part[:, 1:])
        F.cross_entropy(logits.reshape(-1, VOCABULARY), targets.reshape(-1)).backward()
        optimizer.step()
        optimizer.zero_grad()
        optimizer.param_groups[0]["weight_decay"] = 0.5


CASES = [
    plain, part_first, step_in_a_function, on_meta, last_in_a_closure, hidden_states, in_chunks, nested, renamed,
    shifted, of_some, workers, in_backward, pauses, looked_at, other_targets,
]  # fmt: skip

if __name__ == "__main__":
    for place, case in enumerate(CASES):
        if child := os.fork():
            _, status = os.waitpid(child, 0)
            print(f"{case.__name__} ended with {status}", flush=True)
            continue
        os.environ["RANK"] = str(place)  # names the file of what is observed
        status = 1
        try:
            case()
            status = 0
        except SystemExit as ended:
            status = ended.code
        except BaseException as error:
            print(f"{case.__name__}: {error!r}", flush=True)
        atexit._run_exitfuncs()
        os._exit(status)
