"""The database's half of the program as text: finding it, cutting it, installing it.

Nothing in here knows what a statement means; that is for `_store`, one floor up.
"""
