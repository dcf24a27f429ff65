"""The demo: teach the base to sum up a Python function in one line, from the interpreter's own standard library."""
