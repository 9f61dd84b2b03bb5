"""A training loop: it does forward pass, backward pass and update; the job is handed to it and measured."""

import torch


def train(trial) -> None:
    """The plain loop; `trial` is an OwnTrial (selectbench/worker/loop.py)."""
    for step in trial.steps():
        loss = torch.zeros((), device=trial.device)
        for inputs, targets, is_last in step.micro_batches():
            with trial.accumulation(is_last):
                with trial.autocast():
                    logits = trial.model(inputs)
                part = trial.loss(logits, targets) / trial.tokens_per_step
                del logits  # the largest tensor of all would live through the backward pass
                (part * trial.world_size).backward()  # ranks average their gradients
            loss += part.detach()
        norm = torch.nn.utils.clip_grad_norm_(trial.parameters, trial.clip_norm)
        for optimizer in trial.optimizers:
            optimizer.step()
        step.done(loss=loss, gradient_norm=norm)
