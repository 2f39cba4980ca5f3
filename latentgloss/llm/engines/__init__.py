"""How requests reach a language model: over HTTP, vLLM in the process, or transformers in the process."""
