"""BERT's encoder where only some positions of its last layer are wanted.

Pre-training looks at the predicted positions and at [CLS], a sixth of all. Up to the attention of the last layer every
position is needed, for others attend to it; what follows is done position by position, here for the wanted ones alone:

    a = attention(h),   y = LayerNorm(h + W_o a),   out = LayerNorm(y + W_2 gelu(W_1 y))      of BERT's last layer

is, but for the attention itself, three quarters of the layer's products.
"""

from typing import Any

from torch import Tensor


def encode_at(
    bert: Any, input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor, positions: Tensor
) -> Tensor:
    """Return the last layer's output at some positions, [P, hidden].

    Args:
        bert: a ``BertModel`` of transformers with at least one layer.
        input_ids: int64 [B, L].
        token_type_ids: int64 [B, L].
        attention_mask: bool [B, 1, 1, L].
        positions: int64 [P], row * L + position.
    """
    hidden = bert.embeddings(input_ids=input_ids, token_type_ids=token_type_ids)
    *before, last = bert.encoder.layer
    for layer in before:
        made = layer(hidden, attention_mask)
        hidden = made if isinstance(made, Tensor) else made[0]
    attended = last.attention.self(hidden, attention_mask=attention_mask)[0]
    attended, hidden = (a.flatten(0, 1).index_select(0, positions) for a in (attended, hidden))
    return last.feed_forward_chunk(last.attention.output(attended, hidden))
