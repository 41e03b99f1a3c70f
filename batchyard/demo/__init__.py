"""`batchyard demo`: the whole real path over this Python's own docstrings, then search over what was stored."""
