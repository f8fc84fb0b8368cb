"""largebatch: large-batch optimization for PyTorch."""
