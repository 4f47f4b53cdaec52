"""Training a policy by a recipe: GRPO and SFT on items of a run."""

import os

# TRL imports vLLM where it is installed; before it does, this settles what vLLM prints and reports.
import probes.engines.vllm  # noqa: F401

# Both must be set before TRL is imported; neither is of use to who reads our output.
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
