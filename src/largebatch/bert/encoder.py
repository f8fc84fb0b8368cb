"""BERT's encoder without work that nothing depends on: padding, and positions of the last layer that are not wanted.

Everything but attention is done token by token, so that on a CPU the hidden states are kept as [N, hidden], N being the
number of tokens rounded up, and padding is put between them for attention alone. What that saves is the data's share of
padding: 6 % of sequences of 128 tokens from Wikipedia, 23 % from short documents. On a GPU, where the number of tokens
would have to be waited for, and under torch.compile, N is B * L.

Pre-training looks at the predicted positions and at [CLS], a sixth of all. Up to the attention of the last layer every
position is needed, for others attend to it; what follows is done for the wanted ones alone:

    a = attention(h),   y = LayerNorm(h + W_o a),   out = LayerNorm(y + W_2 gelu(W_1 y))      of BERT's last layer

is, but for the attention itself, three quarters of the layer's products.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from largebatch.bert.attention import attention
from largebatch.bert.dropout import quicken_
from largebatch.bert.shapes import filling


class TokenPlaces:
    """Where a batch has tokens and where padding."""

    def __init__(self, attention_mask: Tensor) -> None:
        """Find them.

        Args:
            attention_mask: bool [B, L], False at padding.
        """
        self.shape = attention_mask.shape
        self.mask = attention_mask
        self._at: Tensor | None = None
        if attention_mask.device.type == "cpu" and not torch.compiler.is_compiling():
            flat = attention_mask.flatten()
            at = flat.nonzero().flatten()
            at = pad(at, (0, filling(len(at))), value=len(flat))
            if len(at) < len(flat):
                self._at = at
                self._number = (flat.cumsum(0) - 1).masked_fill_(~flat, len(at))

    def packed(self, of_all: Tensor) -> Tensor:
        """Return what stands at the tokens, [N, ...], of [B * L, ...]; the last few of N are zeros."""
        return of_all if self._at is None else _rows(of_all, self._at, self._number)

    def padded(self, of_tokens: Tensor) -> Tensor:
        """Return [B * L, ...] of [N, ...], zero at padding."""
        return of_tokens if self._at is None else _rows(of_tokens, self._number, self._at)

    def numbers(self, positions: Tensor) -> Tensor:
        """Return which of the N rows stand at positions, row * L + position."""
        return positions if self._at is None else self._number[positions]


class _Rows(torch.autograd.Function):
    """Rows by their numbers, with the way back known: PyTorch's own gradient of that adds row by row, and is slow."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, numbers: Tensor, back: Tensor) -> Tensor:
        """Return rows[numbers], zeros for the number past the last."""
        ctx.save_for_backward(numbers, back)
        return torch.cat([rows, rows.new_zeros(1, *rows.shape[1:])]).index_select(0, numbers)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of the rows, differentiable."""
        (gradient,) = grad_outputs
        numbers, back = ctx.saved_tensors
        return _rows(gradient, back, numbers), None, None


def _rows(rows: Tensor, numbers: Tensor, back: Tensor) -> Tensor:
    return _Rows.apply(rows, numbers, back)


def encode(
    bert: Any, input_ids: Tensor, token_type_ids: Tensor, places: TokenPlaces, *, recompute: bool = False
) -> Tensor:
    """Return the last layer's output at the tokens, [N, hidden].

    Args:
        bert: a ``BertModel`` of transformers with at least one layer.
        input_ids: int64 [B, L].
        token_type_ids: int64 [B, L].
        places: of the tokens.
        recompute: keep the input of each layer alone for the backward pass, and run the layer again there.
    """
    return _through(bert.encoder.layer, _embedded(bert, input_ids, token_type_ids, places), places, recompute)


def encode_at(
    bert: Any,
    input_ids: Tensor,
    token_type_ids: Tensor,
    places: TokenPlaces,
    positions: Tensor,
    *,
    recompute: bool = False,
) -> Tensor:
    """Return the last layer's output at some positions that hold tokens, [P, hidden].

    Args:
        bert: a ``BertModel`` of transformers with at least one layer.
        input_ids: int64 [B, L].
        token_type_ids: int64 [B, L].
        places: of the tokens.
        positions: int64 [P], row * L + position.
        recompute: as in `encode`, but for the last layer.
    """
    *before, last = bert.encoder.layer
    hidden = _through(before, _embedded(bert, input_ids, token_type_ids, places), places, recompute)
    wanted = places.numbers(positions)
    attended = _attended(last.attention.self, hidden, places)
    return _after_attention(last, attended.index_select(0, wanted), hidden.index_select(0, wanted))


class OverBert(nn.Module):
    """A network of transformers with a BERT in it, whose layers `encode` and `encode_at` run."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        self._recompute = False
        quicken_(network)

    def blocks(self) -> list[list[nn.Module]]:
        """Return what of each layer runs in every pass, for FSDP: not the layer itself, nor its attention."""
        return [
            [getattr(layer.attention.self, name) for name in ("query", "key", "value")]
            + [layer.attention.output, layer.intermediate, layer.output]
            for layer in self.network.bert.encoder.layer
        ]

    def recompute_activations(self) -> None:
        """Keep the inputs of layers alone between passes."""
        self._recompute = True


def _embedded(bert: Any, input_ids: Tensor, token_type_ids: Tensor, places: TokenPlaces) -> Tensor:
    rows, length = input_ids.shape
    position_ids = torch.arange(length, device=input_ids.device).repeat(rows)
    ids, types, positions = (places.packed(a.flatten())[None] for a in (input_ids, token_type_ids, position_ids))
    return bert.embeddings(input_ids=ids, token_type_ids=types, position_ids=positions)[0]


def _through(layers: Iterable[Any], hidden: Tensor, places: TokenPlaces, recompute: bool) -> Tensor:
    for layer in layers:
        if recompute and torch.is_grad_enabled():
            # To its end: FSDP counts the modules of a block that have run.
            with set_checkpoint_early_stop(False):
                hidden = checkpoint(_layer, layer, hidden, places, use_reentrant=False)
        else:
            hidden = _layer(layer, hidden, places)
    return hidden


def _layer(layer: Any, hidden: Tensor, places: TokenPlaces) -> Tensor:
    return _after_attention(layer, _attended(layer.attention.self, hidden, places), hidden)


def _attended(layer: Any, hidden: Tensor, places: TokenPlaces) -> Tensor:
    """Return what the heads of a ``BertSelfAttention`` bring to each token, [N, hidden]."""
    rows, length = places.shape
    query, key, value = (
        places.padded(project(hidden)).view(rows, length, -1, layer.attention_head_size).transpose(1, 2)
        for project in (layer.query, layer.key, layer.value)
    )
    dropout = layer.dropout.p if layer.training else 0.0
    return places.packed(attention(query, key, value, places.mask, dropout=dropout).flatten(2).flatten(0, 1))


def _after_attention(layer: Any, attended: Tensor, hidden: Tensor) -> Tensor:
    """Return the output of a ``BertLayer`` at tokens whose attention is done, [N, hidden]."""
    return layer.feed_forward_chunk(layer.attention.output(attended, hidden))
