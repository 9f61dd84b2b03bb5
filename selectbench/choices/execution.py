"""How the model's arithmetic is carried out: attention kernel, compilation, checkpointing."""

from typing import Any, ClassVar, Literal

from selectbench.choices.choice import Choice, Needs


class AttentionChoice(Choice):
    """Which kernel computes attention while training; evaluation always uses sdpa in fp32."""

    needs: ClassVar[Needs] = Needs(packages=("torch", "transformers"))
    may_change: ClassVar[frozenset[str]] = frozenset({"attention", "sdpa_backends"})
    name: str

    def asks_for(self) -> dict[str, Any]:
        """The kernel as the model reports it."""
        return {"attention": self.name}


class Eager(AttentionChoice):
    """The formula as written: softmax(QK^T / sqrt(d_k)) V, with the score matrix in memory."""

    source: ClassVar[str] = "Vaswani et al. 2017, arXiv:1706.03762"
    name: Literal["eager"] = "eager"

    def asks_for(self) -> dict[str, Any]:
        """The formula itself, which a compiler may replace by a fused kernel."""
        return {**super().asks_for(), "sdpa_backends": []}


class Sdpa(AttentionChoice):
    """torch's scaled_dot_product_attention, which picks a fused kernel: the certificate says which."""

    source: ClassVar[str] = "docs.pytorch.org: torch.nn.functional.scaled_dot_product_attention"
    name: Literal["sdpa"] = "sdpa"


class FlashAttention2(AttentionChoice):
    """The flash-attn package's kernel; needs fp16 or bf16 inputs."""

    source: ClassVar[str] = "Dao 2023, arXiv:2307.08691"
    needs: ClassVar[Needs] = Needs(
        device="cuda",
        compute_capability=(8, 0),
        packages=("flash-attn>=2.3",),
        install="pip install flash-attn",
    )
    name: Literal["flash_attention_2"] = "flash_attention_2"


class CompileChoice(Choice):
    """Whether torch.compile compiles the model, and the built-in losses with it.

    A loss of your own runs as it is: where it is to be compiled, put `torch.compile` around it. It may not
    change the kernel of attention unnoticed: `sdpa_backends` is none of what it declares.
    """

    mode: ClassVar[str | None] = None
    """torch.compile's mode; None: the model runs as it is."""
    may_change: ClassVar[frozenset[str]] = frozenset({"compiled"})
    source: ClassVar[str] = "Ansel et al. 2024, doi:10.1145/3620665.3640366; torch.compile"

    def asks_for(self) -> dict[str, Any]:
        """Whether a compiled graph runs."""
        return {"compiled": self.mode is not None}


class CompileOff(CompileChoice):
    """No compilation."""

    name: Literal["off"] = "off"


class CompileDefault(CompileChoice):
    """torch.compile in its default mode, a private cache per trial."""

    needs: ClassVar[Needs] = Needs(packages=("torch",), compiler=True)
    preload: ClassVar[tuple[str, ...]] = ("torch._inductor.compile_fx",)
    mode: ClassVar[str | None] = "default"
    name: Literal["default"] = "default"


class CompileMaxAutotune(CompileDefault):
    """torch.compile that measures several kernels per operation; slow to start."""

    mode: ClassVar[str | None] = "max-autotune"
    name: Literal["max-autotune"] = "max-autotune"  # type: ignore[assignment]


class CheckpointingChoice(Choice):
    """Whether activations are recomputed in the backward pass."""

    enabled: ClassVar[bool] = False
    source: ClassVar[str] = "Chen et al. 2016, arXiv:1604.06174; transformers' gradient_checkpointing_enable"


class CheckpointingOff(CheckpointingChoice):
    """Activations are kept."""

    name: Literal["off"] = "off"


class CheckpointingFull(CheckpointingChoice):
    """Each transformer block's activations are recomputed."""

    enabled: ClassVar[bool] = True
    name: Literal["full"] = "full"
