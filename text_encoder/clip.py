"""The CLIP text transformer (Radford et al. 2021, arXiv:2103.00020, section 2.4), named as in transformers' files."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.architecture import TextEncoderConfig
from text_encoder.names import canonical_name

LEGACY_EOS = 2  # the wrong end token of old config files; their models pool at the highest id


class CLIPTextModel(nn.Module):
    """A causal transformer over token ids.

    The state dict is that of transformers' CLIPTextModel with the `text_model.` prefix, and `text_projection.weight` if
    `config.projection_dim` is set; `canonical_keys` brings other spellings into this form.
    """

    def __init__(self, config: TextEncoderConfig):
        super().__init__()
        self.config = config
        self.text_model = Transformer(config)
        if config.projection_dim is not None:
            self.text_projection = nn.Linear(config.width, config.projection_dim, bias=False)

    @property
    def device(self) -> torch.device:
        return self.text_model.embeddings.token_embedding.weight.device

    def forward(self, ids: Tensor, skip: int = 0, norm: bool = True) -> tuple[Tensor, Tensor]:
        """ids (b, n) -> tokens (b, n, d) and pooled (b, p).

        `tokens` is what enters the last `skip` layers (`hidden_states[-(skip + 1)]` in transformers), through the final
        norm if `norm`. `pooled` is the normed output of all layers at the end token, projected if the model has a
        projection. ValueError if the model has fewer than `skip` layers.
        """
        layers = self.text_model.encoder.layers
        if not 0 <= skip <= len(layers):
            raise ValueError(f"cannot skip {skip} of this text encoder's {len(layers)} layers; lower clip_skip")
        # transformer
        hidden = tokens = self.text_model.embeddings(ids)  # (b, n, d)
        for index, layer in enumerate(layers, start=1):
            hidden = layer(hidden)
            tokens = hidden if index <= len(layers) - skip else tokens
        # tokens
        final = self.text_model.final_layer_norm(hidden)
        if norm:
            tokens = final if skip == 0 else self.text_model.final_layer_norm(tokens)
        # pooled
        pooled = final[torch.arange(len(ids), device=ids.device), self._end(ids)]  # (b, d)
        return tokens, pooled if self.config.projection_dim is None else self.text_projection(pooled)

    def _end(self, ids: Tensor) -> Tensor:
        """The place of the first end token, (b, n) -> (b,)."""
        eos = self.config.eos_token_id
        return (ids if eos == LEGACY_EOS else (ids == eos).int()).argmax(dim=-1)


class Transformer(nn.Module):
    def __init__(self, config: TextEncoderConfig):
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        self.final_layer_norm = nn.LayerNorm(config.width, eps=config.norm_eps)


class Embeddings(nn.Module):
    def __init__(self, config: TextEncoderConfig):
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocabulary, config.width)
        self.position_embedding = nn.Embedding(config.max_length, config.width)

    def forward(self, ids: Tensor) -> Tensor:
        positions = torch.arange(ids.shape[1], device=ids.device)
        embedded: Tensor = self.token_embedding(ids) + self.position_embedding(positions)  # (b, n, d) + (n, d)
        return embedded


class Encoder(nn.Module):
    def __init__(self, config: TextEncoderConfig):
        super().__init__()
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))


class Layer(nn.Module):
    def __init__(self, config: TextEncoderConfig):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.self_attn = Attention(config)
        self.layer_norm2 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))  # (b, n, d)
        out: Tensor = x + self.mlp(self.layer_norm2(x))
        return out


class Attention(nn.Module):
    def __init__(self, config: TextEncoderConfig):
        super().__init__()
        self.heads = config.heads
        self.q_proj = nn.Linear(config.width, config.width)
        self.k_proj = nn.Linear(config.width, config.width)
        self.v_proj = nn.Linear(config.width, config.width)
        self.out_proj = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        # (b, n, d) -> (b, heads, n, d/heads)
        q, k, v = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))  # (b, n, d)
        return out


class MLP(nn.Module):
    def __init__(self, config: TextEncoderConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.mlp_width)
        self.fc2 = nn.Linear(config.mlp_width, config.width)
        self.activation = quick_gelu if config.activation == "quick_gelu" else F.gelu

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.activation(self.fc1(x)))
        return out


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def canonical_keys(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames a state dict for a strict load into CLIPTextModel; what is always the same is dropped."""
    return {name: value for key, value in state_dict.items() if (name := canonical_name(key)) is not None}
