"""GPT-2, as transformers computes it and names its parameters, without the seconds of importing it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clamp3.models.dropout import Dropout

INITIAL_DEVIATION = 0.02  # of random weights
DROPOUT = 0.1
LAYER_NORM_EPS = 1e-5


class Projection(nn.Module):
    """A linear layer whose weight is stored transposed: (in_features, out_features)."""

    def __init__(self, in_features: int, out_features: int, deviation: float = INITIAL_DEVIATION):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(in_features, out_features))
        self.bias = nn.Parameter(torch.zeros(out_features))
        nn.init.normal_(self.weight, std=deviation)

    def forward(self, inputs: Tensor) -> Tensor:
        """(positions, in_features) -> (positions, out_features)."""
        return torch.addmm(self.bias, inputs, self.weight)


class Attention(nn.Module):
    """The projections of causal self-attention; `clamp3.models.layers.decode_layer` attends."""

    def __init__(self, hidden_size: int, num_heads: int, last_deviation: float):
        super().__init__()
        self.num_heads = num_heads
        self.c_attn = Projection(hidden_size, 3 * hidden_size)
        self.c_proj = Projection(hidden_size, hidden_size, last_deviation)
        self.attn_dropout = Dropout(DROPOUT)
        self.resid_dropout = Dropout(DROPOUT)


class FeedForward(nn.Module):
    """The second half of a layer."""

    def __init__(self, hidden_size: int, last_deviation: float):
        super().__init__()
        self.c_fc = Projection(hidden_size, 4 * hidden_size)
        self.c_proj = Projection(4 * hidden_size, hidden_size, last_deviation)
        self.dropout = Dropout(DROPOUT)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(positions, hidden) -> (positions, hidden)."""
        return self.dropout(self.c_proj(F.gelu(self.c_fc(hidden_states), approximate="tanh")))


class Layer(nn.Module):
    """A layer, run by `clamp3.models.layers.decode_layer`."""

    def __init__(self, hidden_size: int, num_heads: int, last_deviation: float):
        super().__init__()
        self.ln_1 = nn.LayerNorm(hidden_size, eps=LAYER_NORM_EPS)
        self.attn = Attention(hidden_size, num_heads, last_deviation)
        self.ln_2 = nn.LayerNorm(hidden_size, eps=LAYER_NORM_EPS)
        self.mlp = FeedForward(hidden_size, last_deviation)


class Transformer(nn.Module):
    """Words, positions and layers."""

    def __init__(self, vocab_size: int, max_length: int, hidden_size: int, num_layers: int, num_heads: int):
        super().__init__()
        self.wte = nn.Embedding(vocab_size, hidden_size)
        self.wpe = nn.Embedding(max_length, hidden_size)
        self.drop = Dropout(DROPOUT)
        last_deviation = INITIAL_DEVIATION / (2 * num_layers) ** 0.5  # of what is added up: GPT-2 paper, section 2.3
        self.h = nn.ModuleList(Layer(hidden_size, num_heads, last_deviation) for _ in range(num_layers))
        self.ln_f = nn.LayerNorm(hidden_size, eps=LAYER_NORM_EPS)
        for embedding in (self.wte, self.wpe):
            nn.init.normal_(embedding.weight, std=INITIAL_DEVIATION)


class Gpt2(nn.Module):
    """GPT-2 with its head, whose weight is that of the words."""

    def __init__(self, vocab_size: int, max_length: int, hidden_size: int, num_layers: int, num_heads: int):
        super().__init__()
        self.transformer = Transformer(vocab_size, max_length, hidden_size, num_layers, num_heads)
        self.lm_head = nn.Linear(hidden_size, vocab_size, bias=False)
        self.tie_weights()

    def tie_weights(self) -> None:
        """Let the head use the words' weight; call it again after a load that replaces parameters."""
        self.lm_head.weight = self.transformer.wte.weight
