"""Parts of prepare.py: reading preference pairs, chat templates, tokens, categories, splits and the pairs.h5 file.

Each module does one step and knows nothing of the command line; prepare.py puts them together.
"""
