"""The quick runtime: Llama- and Qwen3-like decoders on plain packed tensors."""
