"""How many operations a BERT takes: what the model asks for, not what an implementation spends.

Forward, with a multiplication and an addition counted as two, for sequences of n_i tokens, hidden size H, intermediate
size I and vocabulary V:

    encoder     layers * sum_i ( n_i * (8 H^2 + 4 H I) + 4 H n_i^2 )
    masked      2 H^2 + 2 H V    for each predicted token
    pair        2 H^2 + 4 H      for each pair
    span        4 H              for each token

A backward pass takes twice as many. Padding, recomputation, norms and activations count nothing.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class BertSizes:
    """What the number depends on."""

    layers: int
    hidden_size: int
    intermediate_size: int

    def encoder(self, attention_mask: Tensor) -> float:
        """Return the operations of a forward pass through the encoder.

        Args:
            attention_mask: bool [B, L], False at padding.
        """
        lengths = attention_mask.sum(dim=1).double()
        hidden = self.hidden_size
        each = 8 * hidden**2 + 4 * hidden * self.intermediate_size
        return self.layers * (each * float(lengths.sum()) + 4 * hidden * float(lengths.square().sum()))

    def pretraining(self, attention_mask: Tensor, predicted: int, vocabulary_size: int) -> float:
        """Return the operations of a forward and backward pass of pre-training.

        Args:
            attention_mask: bool [B, L].
            predicted: predicted tokens.
            vocabulary_size: tokens to choose from.
        """
        hidden = self.hidden_size
        heads = predicted * (2 * hidden**2 + 2 * hidden * vocabulary_size)
        heads += len(attention_mask) * (2 * hidden**2 + 4 * hidden)
        return 3 * (self.encoder(attention_mask) + heads)

    def spans(self, attention_mask: Tensor) -> float:
        """Return the operations of a forward and backward pass of a span head over the encoder.

        Args:
            attention_mask: bool [B, L].
        """
        return 3 * (self.encoder(attention_mask) + 4 * self.hidden_size * float(attention_mask.sum()))
