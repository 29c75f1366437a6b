"""The shape of a Llama-family model, and its form in a Hugging Face ``config.json``."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxprune.models.rope import LinearScaling, Llama3Scaling, RopeScaling

MODEL_TYPES = ("llama", "mistral", "qwen2")
_SIZES = (  # those without a default
    *("vocab_size", "hidden_size", "intermediate_size"),
    *("num_hidden_layers", "num_attention_heads"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """Describe a decoder of the Llama family: RMSNorm, rotary positions, GQA, SwiGLU.

    The names are those of a Hugging Face ``config.json``.

    Attributes:
      vocab_size: number of tokens.
      hidden_size: width of the residual stream.
      intermediate_size: width of the feed-forward layer.
      num_hidden_layers: number of blocks.
      num_attention_heads: number of query heads.
      num_key_value_heads: number of key and value heads; divides that of query heads.
      head_dim: width of one head; even.
      rms_norm_eps: what RMSNorm adds to the mean square.
      rope_theta: base of the rotary frequencies.
      rope_scaling: how the frequencies are changed, or None.
      max_position_embeddings: longest context in tokens.
      sliding_window: number of tokens, itself included, that a token sees; None for all before it.
      tie_word_embeddings: whether the output layer is the embedding.
      attention_bias: whether attention's four projections have a bias. Those of ``qwen2``, the
        output's excepted, always have.
      mlp_bias: whether the feed-forward projections have a bias.
      model_type: Hugging Face's name of the architecture: ``llama``, ``mistral`` or ``qwen2``.
      bos_token_id: token that opens a text, or None.
      eos_token_ids: tokens that end a text; generation stops at them.

    Raises:
      ValueError: if a size is not positive or does not divide another.

    Example:
      >>> from jaxprune import models
      >>> config = models.LlamaConfig(
      ...     vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
      ...     num_attention_heads=4, num_key_value_heads=2, head_dim=16)
      >>> models.LlamaConfig.from_hf(config.to_hf()) == config
      True
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    max_position_embeddings: int = 2048
    sliding_window: int | None = None
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    model_type: str = "llama"
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        sizes = (*_SIZES, "num_key_value_heads", "head_dim", "max_position_embeddings")
        for name in sizes:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it has to be at least 1.")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads is {self.num_key_value_heads}, which does not divide "
                f"num_attention_heads={self.num_attention_heads}; each is shared by as many query "
                "heads."
            )
        if self.head_dim % 2:
            raise ValueError(
                f"head_dim is {self.head_dim}; rotary positions turn pairs, so it has to be even."
            )
        _check_type(self.model_type)

    @property
    def qkv_bias(self) -> bool:
        """Whether the query, key and value projections have a bias."""
        return self.attention_bias or self.model_type == "qwen2"

    @classmethod
    def from_hf(cls, settings: Mapping[str, Any]) -> "LlamaConfig":
        """Read the content of a ``config.json``; what is absent has Hugging Face's default.

        Args:
          settings: the file's content.

        Returns:
          The configuration.

        Raises:
          ValueError: if the model is not of the Llama family or uses what is not supported here.
        """
        kind = _check_type(settings.get("model_type"))
        _refuse(settings)
        sizes = {name: _required(settings, name) for name in _SIZES}
        heads = sizes["num_attention_heads"]
        rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
        return cls(
            **sizes,
            num_key_value_heads=settings.get("num_key_value_heads") or heads,
            head_dim=settings.get("head_dim") or sizes["hidden_size"] // heads,
            rms_norm_eps=settings.get("rms_norm_eps", 1e-6),
            rope_theta=float(settings.get("rope_theta", rope.get("rope_theta", 10_000.0))),
            rope_scaling=_scaling(rope),
            max_position_embeddings=settings.get("max_position_embeddings", 2048),
            sliding_window=settings.get("sliding_window") if kind == "mistral" else None,
            tie_word_embeddings=settings.get("tie_word_embeddings", False),
            attention_bias=settings.get("attention_bias", False),
            mlp_bias=settings.get("mlp_bias", False),
            model_type=kind,
            bos_token_id=settings.get("bos_token_id"),
            eos_token_ids=_tokens(settings.get("eos_token_id")),
        )

    def to_hf(self) -> dict[str, Any]:
        """Return the content of a ``config.json``.

        Returns:
          A dict that ``from_hf``, transformers and others read.
        """
        skipped = ("eos_token_ids", "rope_scaling")
        same = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in skipped
        }
        ends = list(self.eos_token_ids)
        return same | {
            "architectures": [_ARCHITECTURES[self.model_type]],
            "hidden_act": "silu",
            "rope_scaling": _written(self.rope_scaling),
            "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        }


_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
}


def _check_type(kind: Any) -> str:
    if kind in MODEL_TYPES:
        return kind
    raise ValueError(
        f"model_type is {kind!r}; allowed: {', '.join(MODEL_TYPES)}. Other architectures differ "
        "from Llama in ways that would be passed over silently."
    )


def _required(settings: Mapping[str, Any], name: str) -> int:
    if not isinstance(settings.get(name), int):
        raise ValueError(
            f"config.json has {name}={settings.get(name)!r}; it has to be an integer. The file may "
            "be that of an adapter or of another library."
        )
    return settings[name]


def _refuse(settings: Mapping[str, Any]) -> None:
    """Raise where computing as Llama does would be wrong."""
    unsupported = {
        "hidden_act": settings.get("hidden_act", "silu") != "silu",
        "quantization_config": settings.get("quantization_config") is not None,
        "use_sliding_window": bool(settings.get("use_sliding_window", False)),
    }
    for name, found in unsupported.items():
        if found:
            raise ValueError(
                f"config.json has {name}={settings[name]!r}, which is not supported; load a "
                "checkpoint without it."
            )


def _scaling(rope: Mapping[str, Any]) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind == "linear":
        return LinearScaling(float(rope["factor"]))
    if kind == "llama3":
        return Llama3Scaling(
            float(rope["factor"]),
            float(rope["low_freq_factor"]),
            float(rope["high_freq_factor"]),
            rope["original_max_position_embeddings"],
        )
    raise ValueError(
        f"config.json has rope_scaling of type {kind!r}; allowed: default, linear, llama3."
    )


def _written(scaling: RopeScaling | None) -> dict[str, Any] | None:
    match scaling:
        case None:
            return None
        case LinearScaling(factor):
            return {"rope_type": "linear", "factor": factor}
        case Llama3Scaling(factor, low, high, context):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": context,
            }
    raise ValueError(
        f"rope_scaling is {scaling!r}, which has no form in a config.json; allowed: LinearScaling, "
        "Llama3Scaling, None."
    )


def _tokens(given: Any) -> tuple[int, ...]:
    if given is None:
        return ()
    return tuple(given) if isinstance(given, list | tuple) else (given,)
