"""Language models: how they are opened and asked, which replies are kept, and what may be spent.

What belongs here: everything between a request and its reply. What a prompt says about latents, and what a reply means,
belongs to explainers and judges.

- `opening`      makes a `protocols.LanguageModel` from a registry entry
- `asking`       sends queries, parses the replies, repairs each once, asks again what an earlier run could not use
- `reply_text`   what the text of a reply says, without thinking, leaked control tokens and markup around it
- `unreadable`   decides when a run ends because no reply can be read
- `client`       the callers' side: replies in order, bounded requests in flight, the event loop
- `jobs`         requests in flight
- `sending`      one request until it has a reply: claims, attempts, pauses
- `as_sent`      what a registry entry changes in every request: the system message, an allowance for thinking
- `health`       decides whether a request failed or the server is gone
- `probing`      short requests that find out what a server refuses
- `prompt_length`  whether a model can read a whole prompt, and whether it did
- `payments`     what a request may cost, and what it did cost
- `reply_cache`  replies by request
- `ledger`       what was spent, and the budget
- `remarks`      what was odd about replies, such as bills beyond what a request allowed
- `claims`       equal requests of several processes are sent once
- `database`     the SQLite file of replies and ledger
- `engines/`     how a request reaches a model
- `prompts/`     the wording of prompts (`*.txt`), templates, quoting of corpus text
"""
