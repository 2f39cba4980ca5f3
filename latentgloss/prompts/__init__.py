"""The wording of prompts: text files, one each. How they are read and filled in: `latentgloss.prompting`."""
