"""Servers with an OpenAI-compatible interface, and asking language models behind them."""
