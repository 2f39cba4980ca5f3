"""What language models will be asked, before they are asked.

- `estimate`    requests, tokens and cost of the stages that are stale or missing
- `planned`     the queries that those stages will send, latent by latent
- `counts`      counts the tokens of queries and extrapolates from a sample of latents
- `one_latent`  tries one prompt about one latent: prompt, reply and what is read of it; nothing is stored
"""
