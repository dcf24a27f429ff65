"""The demo: train the base to summarise a Python function in one line, on the standard library's functions."""
