"""BERT: sentence pairs, masking, the model with its two losses, and the pre-training task made of them."""
