"""Trained prefixes on llama.cpp's server, behind a front that answers as OpenAI's API does."""
