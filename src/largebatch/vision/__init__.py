"""Images: where they come from, how they are augmented, and the networks that classify them."""
