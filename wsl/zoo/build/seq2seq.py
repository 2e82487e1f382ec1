"""GRU encoder and decoder for character sequences: one network as a module, and many at once.

    h = last state of GRU_enc(one-hot question),   s_1 … s_A = GRU_dec(one-hot shown characters; s_0 = h)
    logits_t = W s_t + b

Axis letters: B networks, N sequences, T steps, V characters, H hidden neurons.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from wsl.spec import WeightSpec
from wsl.trace import trace


class Seq2Seq(nn.Module):
    """One network; its state dict is a row of the zoo.

    Args:
        characters: V. hidden: H, of the encoder and of the decoder.
    """

    def __init__(self, characters: int, hidden: int) -> None:
        super().__init__()
        self.encoder = nn.GRU(characters, hidden, batch_first=True)
        self.decoder = nn.GRU(characters, hidden, batch_first=True)
        self.head = nn.Linear(hidden, characters)

    def forward(self, question: Tensor, shown: Tensor) -> Tensor:
        """Logits ``[N, A, V]`` of one-hot questions ``[N, Q, V]`` and shown characters ``[N, A, V]``."""
        _, state = self.encoder(question)
        return self.head(self.decoder(shown, state)[0])


def seq2seq_spec(characters: int, hidden: int, steps: tuple[int, int] = (4, 3)) -> WeightSpec:
    """The weight space, traced and verified; input groups ``question`` and ``shown``."""
    generator = torch.Generator().manual_seed(0)
    inputs = tuple(torch.randn(2, length, characters, generator=generator) for length in steps)
    return trace(Seq2Seq(characters, hidden), inputs)


class GRUWeights(NamedTuple):
    """``[B, 3H, V], [B, 3H, H], [B, 3H], [B, 3H]``, gates reset, update, new, as nn.GRU stores them."""

    input: Tensor
    hidden: Tensor
    input_bias: Tensor
    hidden_bias: Tensor


def shapes(characters: int, hidden: int) -> list[tuple[int, ...]]:
    """Of the tensors of a row, in order."""
    gru = [(3 * hidden, characters), (3 * hidden, hidden), (3 * hidden,), (3 * hidden,)]
    return [*gru, *gru, (characters, hidden), (characters,)]


def initial_rows(generators: list[torch.Generator], characters: int, hidden: int) -> Tensor:
    """Fresh networks as PyTorch makes them, uniform within ±1/√H everywhere: float32 ``[B, P]``."""
    numel = sum(math.prod(shape) for shape in shapes(characters, hidden))
    rows = [torch.rand(numel, generator=generator) for generator in generators]
    return (torch.stack(rows) * 2 - 1) / math.sqrt(hidden)


def logits(rows: Tensor, question: Tensor, shown: Tensor, hidden: int) -> Tensor:
    """Logits ``[B, N, A, V]`` of every network ``[B, P]`` on one-hot ``[N, Q, V]`` and ``[N, A, V]``."""
    wanted = shapes(question.shape[-1], hidden)
    sizes = [math.prod(shape) for shape in wanted]
    parts = [part.unflatten(1, shape) for part, shape in zip(rows.split(sizes, 1), wanted, strict=True)]
    encoder, decoder, (weight, bias) = GRUWeights(*parts[:4]), GRUWeights(*parts[4:8]), parts[8:]
    state = rows.new_zeros(len(rows), len(question), hidden)
    state = _states(encoder, question, state)[-1]
    states = torch.cat(_states(decoder, shown, state), 1)  # [B, A·N, H]
    written = torch.baddbmm(bias.unsqueeze(1), states, weight.mT)
    return written.unflatten(1, (shown.shape[1], -1)).transpose(1, 2)


def _states(gru: GRUWeights, x: Tensor, state: Tensor) -> list[Tensor]:
    """The state after every step, each ``[B, N, H]``. Of one-hot inputs all networks share the matrix product."""
    networks, gates = gru.input.shape[:2]
    flat = x.transpose(0, 1).flatten(0, 1) @ gru.input.reshape(networks * gates, -1).mT  # [T·N, B·3H]
    arriving = flat.unflatten(0, (x.shape[1], -1)).unflatten(-1, (networks, gates)).permute(0, 2, 1, 3)
    gate_sizes = [2 * state.shape[-1], state.shape[-1]]  # reset and update, new
    states = []
    for step in arriving + gru.input_bias.unsqueeze(1):
        recalled = torch.baddbmm(gru.hidden_bias.unsqueeze(1), state, gru.hidden.mT)
        (gates_in, new_in), (gates_back, new_back) = step.split(gate_sizes, -1), recalled.split(gate_sizes, -1)
        reset, update = (gates_in + gates_back).sigmoid().chunk(2, -1)
        state = torch.lerp(torch.addcmul(new_in, reset, new_back).tanh(), state, update)
        states.append(state)
    return states
