"""What the kernel of attention is given while training: the same eagerly and as torch.compile traces it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import task_jobs as jobs
import torch
import torch.nn.functional as F  # noqa: N812  # noqa: N812
from torch.overrides import TorchFunctionMode
from transformers import MistralConfig, MistralForCausalLM, masking_utils
from worker.conftest import GPT2, LLAMA

from selectbench.worker.attention import masks_by_shape
from selectbench.worker.batches import PairBatches

LENGTH, WINDOW, STEPS = 32, 8, 6
Given = tuple[torch.Tensor | None, bool]
"""A mask, True or 0 where is attended to, and `is_causal`."""


class Kernel(TorchFunctionMode):
    """Notes what scaled_dot_product_attention is given in forward passes that have a backward pass."""

    def __init__(self, into: list[Given]) -> None:
        super().__init__()
        self.into = into

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # A model of any family is called with one sequence before it trains, to see what it does.
        trains = func is F.scaled_dot_product_attention and torch.is_grad_enabled() and len(args[0]) > 1
        if trains:
            mask = kwargs.get("attn_mask")
            self.into.append((None if mask is None else mask.detach().clone(), kwargs.get("is_causal", False)))
        return func(*args, **kwargs)


@contextmanager
def traced(into: list[Given]) -> Iterator[None]:
    """torch.compile traces as always; the graphs run under the eye of `Kernel` instead of going to a compiler."""

    def backend(graph: torch.fx.GraphModule, inputs: object) -> Any:
        def run(*arguments: Any) -> Any:
            with Kernel(into):
                return graph.forward(*arguments)

        return run

    torch._dynamo.reset()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", partial(torch.compile, backend=backend))
        yield
    torch._dynamo.reset()


def given(trials: Any, compiling: str, code: Sequence[str] = (), **job: Any) -> list[Given]:
    """By the first step of a trial."""
    found: list[Given] = []
    with traced(found) if compiling == "default" else Kernel(found):
        finished = trials.finished(
            job={**job, "max_steps": STEPS, "eval": "none", "timing": {"warmup_steps": 1}}, compile=compiling,
            code=code,
        )  # fmt: skip
    assert finished.identity.compiled == (compiling == "default")
    assert len(found) % STEPS == 0
    return found[: len(found) // STEPS]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return jobs.prepared_tasks(tmp_path_factory.mktemp("tasks"))


both = pytest.mark.parametrize("compiling", ["off", "default"])


@both
@pytest.mark.parametrize("model", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_a_causal_model_has_no_mask(trials, model, compiling):
    assert given(trials, compiling, model=model) == [(None, True)] * 2


@both
def test_a_sliding_window_keeps_its_mask(trials, tmp_path, compiling):
    config = MistralConfig(
        num_hidden_layers=2, hidden_size=32, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64,
        vocab_size=300, sliding_window=WINDOW, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    MistralForCausalLM(config).save_pretrained(tmp_path / "mistral")
    found = given(trials, compiling, model={"pretrained": str(tmp_path / "mistral")})
    place = torch.arange(LENGTH)
    window = (place[None, :] <= place[:, None]) & (place[None, :] > place[:, None] - WINDOW)
    assert len(found) == 2
    for mask, is_causal in found:
        assert not is_causal
        assert mask.dtype == torch.bool
        assert torch.equal(mask, window.expand_as(mask))


@both
def test_an_encoder_without_padding_attends_to_everything(trials, prepared, compiling):
    trials.data_folder = prepared["masked_lm"].folder
    assert given(trials, compiling, **jobs.MASKED) == [(None, False)] * 2


@both
@pytest.mark.parametrize("family", ["t5", "bart"])
def test_padding_is_masked_on_the_encoders_side(trials, prepared, compiling, family):
    data, job = prepared[family], {"t5": jobs.T5_PAIRS, "bart": jobs.BART_PAIRS}[family]
    trials.data_folder = data.folder
    found = given(trials, compiling, **job)
    order = trials.order(job=job)
    batches = PairBatches(data, order.job, order.trial.seed, "cpu")
    there = batches.batch_at(batches.sample_indices(0), 0).named["attention_mask"].bool()
    assert not there.all()
    causal = torch.ones(LENGTH, LENGTH).tril().bool()
    padded, ahead = there[:, None, None, :], causal.expand(len(there), 1, -1, -1)
    encoder, own, across = found[:2], found[2::2], found[3::2]
    assert len(own) == len(across) == 2
    for mask, is_causal in encoder + across:
        assert not is_causal
        assert torch.equal(attended(mask), padded.expand_as(mask))
    for mask, is_causal in own:
        if family == "bart":
            assert (mask, is_causal) == (None, True)
        else:  # T5 adds its positions to the scores
            assert torch.equal(attended(mask), ahead[: len(mask)].expand_as(mask))


def attended(mask: torch.Tensor) -> torch.Tensor:
    """True where a mask, boolean or added to the scores, lets attention through."""
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


def test_a_versions_own_word_on_exporting_does_not_matter(trials, monkeypatch):
    # Before torch 2.14 (pytorch#176499) some traces take every compilation for an export and build each mask.
    monkeypatch.setattr(masking_utils, "is_torchdynamo_exporting", lambda: True)
    assert given(trials, "default", model=LLAMA) == [(None, True)] * 2


def test_transformers_is_as_it_was_afterwards():
    kernels = dict(masking_utils.ALL_MASK_ATTENTION_FUNCTIONS)
    find = masking_utils.find_packed_sequence_indices
    with masks_by_shape():
        assert masking_utils.find_packed_sequence_indices is not find
    assert masking_utils.find_packed_sequence_indices is find
    assert dict(masking_utils.ALL_MASK_ATTENTION_FUNCTIONS) == kernels


PACKING = """
import torch
from transformers import LlamaConfig, LlamaForCausalLM

class Packing(LlamaForCausalLM):
    def __init__(self, vocab_size, seq_len):
        super().__init__(LlamaConfig(
            num_hidden_layers=1, hidden_size=32, num_attention_heads=2, intermediate_size=64, vocab_size=vocab_size,
            attn_implementation="sdpa", use_cache=False,
        ))

    def forward(self, input_ids):
        places = torch.arange(input_ids.shape[1])[None] % (input_ids.shape[1] // 2)
        return super().forward(input_ids=input_ids, position_ids=places)
"""


def test_a_model_of_own_code_may_pack_sequences(trials, tmp_path):
    """Its positions begin anew in the middle of a row: what comes after sees nothing of what came before."""
    (tmp_path / "packing_model.py").write_text(PACKING)
    found = given(trials, "off", model={"family": "packing_model:Packing"}, code=[str(tmp_path)])
    half = torch.ones(LENGTH // 2, LENGTH // 2).tril().bool()
    ((mask, is_causal),) = found
    assert not is_causal
    assert torch.equal(mask, torch.block_diag(half, half).bool().expand_as(mask))
