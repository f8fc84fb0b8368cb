"""GPT: causal language models on packed sequences."""
