"""What this project measured, each figure by a command: docs/benchmarks.md."""
