"""What would be asked of language models, before it is.

- `estimate`    requests, tokens and cost of what is stale
- `counts`      counting the tokens of prompts on a sample
- `one_latent`  one latent tried: prompt, reply, parse; nothing stored
"""
