"""The wording of prompts (`*.txt`), how they are filled in (`templates`), and how corpus text is quoted (`quoting`)."""
