"""Engines: how a request reaches a language model.

- `base`               the interface of an engine, the kinds of failure, batches of single requests
- `openai_compatible`  a server over HTTP
- `answers`            the forms in which servers write an answer
- `keys`               reading a server's API key
- `bounds`             the most tokens that the body of a request allows
- `usage`              the tokens that a server reports
- `refusals`           what a server's errors mean
- `vllm`               vLLM in this process
- `transformers`       transformers in this process
- `grammars`           replies held to a regular expression or a JSON schema
"""
