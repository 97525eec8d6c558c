"""A decoder-only transformer over bytes, and its optimizer.

Shapes: B = rows of a micro-batch, T = context (bytes per row), D = width.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gpt.config import Config

VOCABULARY = 256  # tokens are bytes


class Block(nn.Module):
    """Attention, then a two-layer perceptron, each reading the normalised stream and adding to it."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.heads, width = config.heads, config.width
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.attended = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, stream: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)  # [B, heads, T, D / heads]
            for part in self.qkv(self.norm_attention(stream)).chunk(3, dim=2)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        stream = stream + self.dropout(self.attended(mixed))
        return stream + self.dropout(self.down(F.gelu(self.up(self.norm_mlp(stream)))))


class GPT(nn.Module):
    """A decoder-only transformer over bytes."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.token = nn.Embedding(VOCABULARY, config.width)
        self.position = nn.Embedding(config.context, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm, self.head = nn.LayerNorm(config.width), nn.Linear(config.width, VOCABULARY, bias=False)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)
        # With 0.02 here too, the loss stays at that of guessing single bytes, 3.0, for longer than this example runs.
        nn.init.normal_(self.token.weight, std=0.5)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss, in nats per byte, of [B, T] tokens predicting [B, T] targets."""
        stream = self.token(tokens) + self.position.weight[: tokens.shape[1]]
        for block in self.blocks:
            stream = block(stream)
        return F.cross_entropy(self.head(self.norm(stream)).flatten(0, 1), targets.flatten())


def make_optimizer(model: GPT, config: Config) -> torch.optim.AdamW:
    matrices = [parameter for parameter in model.blocks.parameters() if parameter.dim() == 2]
    decayed = {id(parameter) for parameter in matrices}
    others = [parameter for parameter in model.parameters() if id(parameter) not in decayed]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95))


def lr_fraction(step: int, config: Config) -> float:
    """Return the learning rate at a step over its peak: linear warm-up, then a cosine down to the minimum."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    done = min(1.0, (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps))
    return config.min_lr_fraction + (1 - config.min_lr_fraction) * 0.5 * (1 + math.cos(math.pi * done))
