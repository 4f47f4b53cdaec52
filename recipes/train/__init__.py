"""Training a policy by a recipe: GRPO and SFT on items of a run."""

# TRL imports vLLM where it is installed; before it does, this settles what vLLM prints and reports.
import probes.engines.vllm  # noqa: F401
