"""Language models: engines, the client that keeps them busy, the cache of replies, the ledger and the budget.

`models.open_model` makes a `protocols.LanguageModel` of a registry entry. Nothing here knows what is asked.
"""
