"""Language models: engines, the client that keeps them busy, the cache of replies, the ledger and the budget.

Nothing here knows what is asked.

- `opening`      a registry entry becomes a `protocols.LanguageModel`
- `client`       bounded concurrency, retries, budget
- `asking`       a prompt, its parser and one repair become an answer or a reason
- `reply_cache`  replies kept by request
- `ledger`       what was spent
- `claims`       equal requests of several processes are sent once
- `database`     the SQLite file behind the three
- `health`       when to give a server up
- `engines/`     how requests reach a model
- `prompts/`     templates, quoting of corpus text, the wording of prompts (`*.txt`)
"""
