"""litgpt's pretraining on the rows of plain.py."""

import argparse
import sys
from pathlib import Path

import torch
from litgpt.args import EvalArgs, LogArgs, TrainArgs
from litgpt.config import Config
from litgpt.data import DataModule
from litgpt.pretrain import setup
from models import rows

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=6)
parser.add_argument("--micro", type=int, default=4)
a = parser.parse_args()
sys.argv[1:] = ["small"]  # what litgpt parses for itself


class Rows(DataModule):
    def connect(self, tokenizer=None, batch_size=1, max_seq_length=None):
        self.batch_size = batch_size

    def train_dataloader(self):
        return torch.utils.data.DataLoader(rows(4 * a.steps * 4), batch_size=self.batch_size)

    val_dataloader = train_dataloader


config = Config(
    name="small",
    block_size=16,
    vocab_size=64,
    padded_vocab_size=64,
    n_layer=2,
    n_head=2,
    n_embd=32,
    bias=True,
)
setup(
    "small",
    model_config=config,
    out_dir=Path("out"),
    precision="32-true",
    data=Rows(),
    devices=1,
    train=TrainArgs(
        global_batch_size=4,
        micro_batch_size=a.micro,
        max_tokens=16 * 4 * a.steps,
        max_norm=1.0,
        lr_warmup_steps=0,
        save_interval=10**6,
        max_seq_length=16,
        log_interval=1,
    ),
    eval=EvalArgs(interval=10**6, max_iters=1, initial_validation=False, final_validation=False),
    log=LogArgs(),
    logger_name="csv",
    seed=0,
    tokenizer_dir=None,
)
