"""What of the model is trained: all of it, or low-rank additions to its matrices."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from selectbench.choices.choice import Choice, Needs

if TYPE_CHECKING:
    import torch

INSTALL = "pip install 'selectbench[peft]'"
_CHANGES = frozenset({"trainable_parameters", "first_step_gradient_norm"})


class AdaptationChoice(Choice):
    """How the weights that the job starts from are trained."""

    def apply(self, model: torch.nn.Module, device: str) -> torch.nn.Module:
        """The model to train; what is not trained needs no gradient. Worker only; may draw random numbers."""
        return model


class FullTraining(AdaptationChoice):
    """Every weight is trained."""

    source: ClassVar[str] = "https://docs.pytorch.org/docs/stable/optim.html"
    may_change: ClassVar[frozenset[str]] = _CHANGES
    name: Literal["full"] = "full"


Rank = Annotated[int, Field(ge=1, le=4096)]


class Lora(AdaptationChoice):
    """LoRA (Hu et al. 2021, arXiv:2106.09685): the product of two thin matrices is added to every linear layer.

    The head and the embeddings stay as they are. The additions are zero at first, so that training starts from the
    model itself.
    """

    source: ClassVar[str] = "https://huggingface.co/docs/peft/package_reference/lora"
    needs: ClassVar[Needs] = Needs(packages=("peft",), install=INSTALL)
    may_change: ClassVar[frozenset[str]] = _CHANGES
    preload: ClassVar[tuple[str, ...]] = ("peft",)
    name: Literal["lora"] = "lora"
    r: Rank = 8
    """Rank of the additions."""
    alpha: Annotated[float, Field(gt=0)] = 16.0
    """The additions are scaled by alpha / r."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of what goes into the additions."""

    def apply(self, model: torch.nn.Module, device: str) -> torch.nn.Module:
        """With additions to every linear layer but the head's."""
        from peft import LoraConfig, inject_adapter_in_model
        from transformers.pytorch_utils import Conv1D

        transposed = any(isinstance(part, Conv1D) for part in model.modules())
        config = LoraConfig(
            r=self.r, lora_alpha=self.alpha, lora_dropout=self.dropout, target_modules="all-linear",
            fan_in_fan_out=transposed,
        )  # fmt: skip
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        adapted: torch.nn.Module = inject_adapter_in_model(config, model)
        return adapted


class Qlora(Lora):
    """QLoRA (Dettmers et al. 2023, arXiv:2305.14314): LoRA over linear layers in 4 bits (NF4, quantised twice)."""

    source: ClassVar[str] = "https://huggingface.co/docs/bitsandbytes/reference/nn/linear4bit"
    needs: ClassVar[Needs] = Needs(packages=("peft", "bitsandbytes"), install=INSTALL)
    may_change: ClassVar[frozenset[str]] = _CHANGES | {
        "first_step_loss", "working_dtype", "compute_dtype", "sdpa_backends",
    }  # fmt: skip
    preload: ClassVar[tuple[str, ...]] = ("peft", "bitsandbytes")
    name: Literal["qlora"] = "qlora"  # type: ignore[assignment]

    def apply(self, model: torch.nn.Module, device: str) -> torch.nn.Module:
        """With its linear layers in 4 bits, but the head's, and additions to them."""
        import torch

        head: Any = getattr(model, "get_output_embeddings", lambda: None)()
        linear = [
            (name, part) for name, part in model.named_modules()
            if type(part) is torch.nn.Linear and part is not head
        ]  # fmt: skip
        if not linear:
            raise NotImplementedError(
                "the model has no torch.nn.Linear to keep in 4 bits (gpt2 has none, llama has)"
            )
        for name, part in linear:
            parent = model.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], _in_four_bits(part, device))
        return super().apply(model, device)

    def asks_for(self) -> dict[str, Any]:
        """Its weights are kept in bytes of two each, beside those that stay in fp32."""
        return {"working_dtype": "float32+uint8"}


@cache
def _four_bit_layer() -> Any:
    """The library's layer that computes as other matrix products do: in autocast's dtype, in fp32 outside of it.

    Its own would compute in one dtype for ever, the evaluation too, and round its bias to that in place.
    """
    import bitsandbytes as bnb
    import torch

    class Linear4bit(bnb.nn.Linear4bit):  # type: ignore[misc]
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            device = x.device.type
            dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
            bias = None if self.bias is None else self.bias.to(dtype)
            product: torch.Tensor = bnb.matmul_4bit(
                x.to(dtype), self.weight, bias=bias, quant_state=self.weight.quant_state
            )
            return product

    return Linear4bit


def _in_four_bits(linear: torch.nn.Linear, device: str) -> torch.nn.Module:
    import bitsandbytes as bnb
    import torch

    made = _four_bit_layer()(
        linear.in_features, linear.out_features, bias=linear.bias is not None, compute_dtype=torch.float32,
        compress_statistics=True, quant_type="nf4",
    )  # fmt: skip
    made.weight = bnb.nn.Params4bit(
        linear.weight.detach().clone(), requires_grad=False, compress_statistics=True, quant_type="nf4"
    )
    # On a CPU with AVX-512's bf16 units the library would repack the weights in the first evaluation, and multiply
    # in bf16. Evaluations are in fp32, and leave the weights as they are.
    made.support_avx512bf16_for_cpu = False
    if linear.bias is not None:
        made.bias = linear.bias
    quantised: torch.nn.Module = made.to(device)
    return quantised
