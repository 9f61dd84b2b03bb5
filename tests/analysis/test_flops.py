"""The formula of FLOPs by hand; against torch's count on real models in tests/worker/test_architecture.py."""

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from selectbench.analysis.metrics import hardware_flops_per_token, model_flops_per_token
from selectbench.record.record import Architecture

PARAMETERS = st.integers(1, 10**12)
SHAPES = st.builds(Architecture, matmul_parameters=PARAMETERS, block_matmul_parameters=PARAMETERS,
                   attention_width=st.integers(1, 10**6), seq_len=st.integers(1, 10**6))  # fmt: skip


def test_gpt2_small_by_hand() -> None:
    # 12 blocks of 12 x 768^2 and a head of 50,257 x 768; 12 layers of 768 over 1,024 tokens.
    blocks, head = 12 * 12 * 768**2, 50_257 * 768
    shape = Architecture(matmul_parameters=blocks + head, block_matmul_parameters=blocks,
                         attention_width=12 * 768, seq_len=1024)  # fmt: skip
    assert model_flops_per_token(shape) == 6 * 123_532_032 + 12 * 12 * 768 * 1024 == 854_438_400
    assert hardware_flops_per_token(shape, recomputed=False) == 854_438_400
    assert hardware_flops_per_token(shape, recomputed=True) == 854_438_400 + 2 * blocks + 4 * 12 * 768 * 1024


@given(SHAPES)
def test_recomputation_adds_a_forward_pass_of_the_blocks_and_never_a_backward_one(shape: Architecture) -> None:
    only_blocks = replace(shape, block_matmul_parameters=shape.matmul_parameters)
    assert 3 * hardware_flops_per_token(only_blocks, recomputed=True) == 4 * model_flops_per_token(shape)
    assert model_flops_per_token(only_blocks) == model_flops_per_token(shape)


@given(SHAPES, st.integers(2, 8))
def test_attention_alone_grows_with_the_sequence(shape: Architecture, times: int) -> None:
    longer = replace(shape, seq_len=shape.seq_len * times)
    grown = model_flops_per_token(longer) - model_flops_per_token(shape)
    assert grown == 12.0 * shape.attention_width * shape.seq_len * (times - 1)
