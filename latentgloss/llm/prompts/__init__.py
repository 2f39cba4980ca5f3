"""Prompts: their wording, how they are filled in, and how they quote corpus text.

- `*.txt`      one prompt each; the hash of the file is in the recipe of every result made with it
- `templates`  reads these files and fills in their variables
- `quoting`    text of a corpus as a prompt shows it
"""
