"""A tiny training that misbehaves as it is told to; started by tests as a user's own script would be."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time

parser = argparse.ArgumentParser()
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--max-steps", type=int, default=12)
parser.add_argument("--lr", type=float, default=1e-2)
parser.add_argument("--decay", type=float, default=0.01)
parser.add_argument("--rows", type=int, default=4)
parser.add_argument("--clip", type=float)
parser.add_argument("--does", default="")
parser.add_argument("--who", type=int, help="the rank that does it")
asked = parser.parse_args()

if asked.does == "trains_nothing":
    sys.exit(0)
if asked.does == "asks":
    input("which learning rate? ")

import torch  # noqa: E402
from torch import nn  # noqa: E402

torch.set_num_threads(1)
if asked.does != "unseeded":
    torch.manual_seed(0 if asked.does == "ignores_seed" else asked.seed)
VOCAB, LENGTH = 64, 16


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, 32)
        self.head = nn.Linear(32, VOCAB)

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor | None = None) -> tuple[torch.Tensor, object]:
        logits = self.head(self.embedding(tokens))
        return logits, None if targets is None else nn.functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten()
        )


model: nn.Module = Model()
rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
if asked.who not in (None, rank):
    asked.does = ""
if ranks > 1:
    torch.distributed.init_process_group("gloo")
    model = nn.parallel.DistributedDataParallel(model)
trained = list(model.parameters())
if asked.does == "forgets_the_head":
    trained = [parameter for parameter in trained if parameter.dim() > 1 and len(parameter) == VOCAB][:1]
optimizer = torch.optim.AdamW(trained, lr=asked.lr, weight_decay=asked.decay)
steps = 5 if asked.does == "ends_early" else asked.max_steps
for step in range(steps):
    window = torch.randint(0, VOCAB, (asked.rows, LENGTH + 1))[rank::ranks]
    if asked.does == "trains_on_heldout":
        window = (torch.arange(LENGTH + 1) + 5 * torch.arange(asked.rows)[:, None]) % VOCAB
    logits, loss = model(window[:, :-1], window[:, 1:])
    if asked.does == "slices" and step:
        loss = nn.functional.cross_entropy(logits[:, 8:].flatten(0, 1), window[:, 9:].flatten())
    if (asked.does == "diverges" and step == 3) or asked.does == "diverges_at_once":
        loss = loss * float("nan")
    loss.backward()
    if asked.clip:
        nn.utils.clip_grad_norm_(model.parameters(), asked.clip)
    optimizer.step()
    optimizer.zero_grad()
    if step != 3:
        continue
    match asked.does:
        case "raises":
            raise ValueError("the data are broken")
        case "runs_out":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        case "is_killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hangs":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(600)
        case "floods":
            for _ in range(90):
                print("x" * (1 << 20))
        case "leaves_a_daemon":
            sleeps = [sys.executable, "-c", "import time; time.sleep(600)"]
            child = subprocess.Popen(sleeps, start_new_session=True)  # noqa: TID251
            print("daemon", child.pid, flush=True)
if asked.does == "fails_at_the_end":
    os._exit(1)
