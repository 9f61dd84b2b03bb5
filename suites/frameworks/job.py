"""What every script beside it trains: the same model, rows of tokens, optimizer and schedule, drawn from the seed.

python job.py heldout.npy     # writes the tokens that nothing here trains on
"""

import argparse
import math
import sys
from pathlib import Path

import torch

HELD_OUT_TOKENS = 65_537
CLIP_NORM = 1.0


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser()
    for name, kind in {
        "seed": int, "max-steps": int, "layers": int, "width": int, "seq-len": int, "rows": int, "lr": float,
        "precision": str, "device": str,
    }.items():  # fmt: skip
        parser.add_argument(f"--{name}", type=kind, required=True)
    return parser.parse_args()


def text_tokens() -> torch.Tensor:
    """The American Standard Version of 1901, a token for each of its 4.2 million bytes."""
    import pythonbible as bible

    chapters = []
    for book in list(bible.Book)[:66]:  # the apocrypha that follow are not in this version
        for chapter in range(1, bible.get_number_of_chapters(book) + 1):
            verses = range(1, bible.get_number_of_verses(book, chapter) + 1)
            ids = (bible.get_verse_id(book, chapter, verse) for verse in verses)
            chapters.append("\n".join(bible.get_verse_text(i, bible.Version.AMERICAN_STANDARD) for i in ids))
    return torch.frombuffer(bytearray("\n\n".join(chapters).encode()), dtype=torch.uint8)


def rows_of_tokens(job: argparse.Namespace) -> torch.Tensor:
    """[max_steps * rows, seq_len] token ids in the order of the training; no place of the text comes twice."""
    training = text_tokens()[:-HELD_OUT_TOKENS]
    pieces = training[: len(training) // job.seq_len * job.seq_len].reshape(-1, job.seq_len)
    order = torch.randperm(len(pieces), generator=torch.Generator().manual_seed(job.seed))
    wanted = job.max_steps * job.rows
    if wanted > len(pieces):
        sys.exit(f"the text has {len(pieces)} rows of {job.seq_len} tokens, the job needs {wanted}")
    return pieces[order[:wanted]].long()


def dataset(job: argparse.Namespace) -> list[dict[str, torch.Tensor]]:
    """The rows as transformers' models take them; they shift the labels themselves."""
    return [{"input_ids": row, "labels": row} for row in rows_of_tokens(job)]


def model(job: argparse.Namespace) -> torch.nn.Module:
    """A Llama on the CPU in fp32, without dropout."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(job.seed)
    config = LlamaConfig(
        vocab_size=256, hidden_size=job.width, intermediate_size=job.width * 8 // 3, num_hidden_layers=job.layers,
        num_attention_heads=job.width // 64, max_position_embeddings=job.seq_len, use_cache=False,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def optimizer_and_schedule(
    job: argparse.Namespace, model: torch.nn.Module
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW, its rate rising over the first tenth of the steps and falling to a tenth along a cosine."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=job.lr, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    rising = max(1, job.max_steps // 10)

    def share(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        return 0.55 + 0.45 * math.cos(math.pi * (step - rising) / max(1, job.max_steps - rising))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, share)


class InOrder:
    """Before a trainer of transformers: the rows are read as they come, since they are shuffled already."""

    def _get_train_sampler(self, *_: object) -> torch.utils.data.Sampler:
        return torch.utils.data.SequentialSampler(self.train_dataset)


def trainer_arguments(job: argparse.Namespace, folder: str) -> dict[str, object]:
    """What a trainer of transformers is told of the job; it writes into the folder."""
    return {
        "output_dir": folder, "max_steps": job.max_steps, "per_device_train_batch_size": job.rows, "seed": job.seed,
        "max_grad_norm": CLIP_NORM, "bf16": job.precision == "bf16", "use_cpu": job.device == "cpu",
        "dataloader_pin_memory": job.device != "cpu", "logging_steps": 10, "save_strategy": "no",
        "report_to": "none",
    }  # fmt: skip


if __name__ == "__main__":
    import numpy

    numpy.save(Path(sys.argv[1]), text_tokens()[-HELD_OUT_TOKENS:].numpy())
