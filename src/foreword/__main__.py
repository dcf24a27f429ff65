"""`python -m foreword` is the command line."""

from __future__ import annotations

from foreword.cli.main import run

if __name__ == "__main__":
    run()
