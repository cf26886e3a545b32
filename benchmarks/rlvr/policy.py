"""The policy: a transformer of about 1M parameters that reads an image and a question and writes a response."""

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.rlvr.language import END, QUESTION_LENGTH, RESPONSE_LENGTH, TOKENS, VOCABULARY
from benchmarks.rlvr.scenes import COLORS, GRID, KINDS

HEADS = 4


class Attention(nn.Module):
    """Multi-head attention from x to whatever keys and values it is given."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def keys_and_values(self, x: Tensor) -> Tensor:
        """Project (N, t, width) to keys and values, (2, N, heads, t, width of a head)."""
        return rearrange(self.key_value(x), "n t (two h d) -> two n h t d", two=2, h=HEADS)

    def forward(self, x: Tensor, key_value: Tensor, *, causal: bool = False) -> Tensor:
        """Return x + attention(norm(x)); x is (N, t, width)."""
        query = rearrange(self.query(self.norm(x)), "n t (h d) -> n h t d", h=HEADS)
        mixed = F.scaled_dot_product_attention(query, *key_value, is_causal=causal)
        return x + self.out(rearrange(mixed, "n h t d -> n t (h d)"))


class FeedForward(nn.Sequential):
    """Two layers with a residual connection around them."""

    def __init__(self, width: int) -> None:
        hidden = 4 * width
        super().__init__(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        """Return x + layers(x)."""
        return x + super().forward(x)


class Reader(nn.Module):
    """One bidirectional layer over patches and question."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention, self.feed_forward = Attention(width), FeedForward(width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, t, width) to the same shape."""
        key_value = self.attention.keys_and_values(self.attention.norm(x))
        return self.feed_forward(self.attention(x, key_value))


class Writer(nn.Module):
    """One causal layer over the response, which also attends to its prompt."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.itself, self.prompt, self.feed_forward = Attention(width), Attention(width), FeedForward(width)

    def forward(self, x: Tensor, prompt: Tensor, past: Tensor | None) -> tuple[Tensor, Tensor]:
        """Map x (B G, t, width) to the same shape; also return the keys and values of all tokens so far."""
        key_value = self.itself.keys_and_values(self.itself.norm(x))
        if past is not None:
            key_value = torch.cat([past, key_value], dim=-2)
        x = self.itself(x, key_value, causal=past is None)
        # The responses to one prompt lie side by side as queries, so the prompt is projected and kept once.
        batch, length = prompt.shape[1], x.shape[1]
        x = rearrange(x, "(b g) t d -> b (g t) d", b=batch)
        x = self.prompt(x, prompt)
        x = rearrange(x, "b (g t) d -> (b g) t d", t=length)
        return self.feed_forward(x), key_value


class Policy(nn.Module):
    """Patches and question in, next-token logits out."""

    def __init__(self, features: int, width: int = 128) -> None:
        super().__init__()
        self.see = nn.Sequential(nn.LayerNorm(features), nn.Linear(features, width))
        self.words = nn.Embedding(len(VOCABULARY), width)
        self.prompt_places = nn.Parameter(0.02 * torch.randn(GRID * GRID + QUESTION_LENGTH, width))
        self.places = nn.Parameter(0.02 * torch.randn(RESPONSE_LENGTH, width))
        self.readers = nn.ModuleList(Reader(width) for _ in range(2))
        self.writers = nn.ModuleList(Writer(width) for _ in range(2))
        self.speak = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, len(VOCABULARY)))
        self.name_kind = nn.Linear(width, 1 + len(KINDS))
        # spelled as in the state dicts that the records of the study hold
        self.name_colour = nn.Linear(width, 1 + len(COLORS))

    def read(self, patches: Tensor, question: Tensor) -> Tensor:
        """Encode prompts: patches (B, 16, features) and question tokens (B, Q) to (B, 16 + Q, width)."""
        x = torch.cat([self.see(patches), self.words(question)], dim=1) + self.prompt_places
        for reader in self.readers:
            x = reader(x)
        return x

    def name_cells(self, prompt: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits of each cell's kind and color, (B, 16, classes): the auxiliary task."""
        cells = prompt[:, : GRID * GRID]
        return self.name_kind(cells), self.name_colour(cells)

    def prompt_memory(self, prompt: Tensor) -> list[Tensor]:
        """Project what `read` returned to each writer's keys and values."""
        return [writer.prompt.keys_and_values(prompt) for writer in self.writers]

    def write(
        self, tokens: Tensor, memory: list[Tensor], past: list[Tensor] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Return next-token logits after each of tokens (B G, t), given what came before, and the new past."""
        start = 0 if past is None else past[0].shape[-2]
        x = self.words(tokens) + self.places[start : start + tokens.shape[1]]
        present = []
        for layer, (writer, prompt) in enumerate(zip(self.writers, memory, strict=True)):
            x, key_value = writer(x, prompt, None if past is None else past[layer])
            present.append(key_value)
        return self.speak(x), present

    def response_logits(self, prompt: Tensor, response: Tensor) -> Tensor:
        """Return the logits of every token of responses (B G, T), each given the tokens before it."""
        logits, _ = self.write(start_tokens(response), self.prompt_memory(prompt))
        return logits


def start_tokens(response: Tensor) -> Tensor:
    """Shift responses (N, T) right by one, behind a start token (the end token stands for it)."""
    start = response.new_full((len(response), 1), TOKENS[END])
    return torch.cat([start, response[:, :-1]], dim=1)
