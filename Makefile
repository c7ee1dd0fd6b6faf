# The front door: every command a person types. `make` lists them.

RECIPE ?= smollm2-135m-lora
QUANT ?= Q8_0
ROOMS ?= 48
CACHE := $(or $(REACT_RECIPES_CACHE),$(HOME)/.cache/react-recipes)
# uv makes .venv from requirements.lock; where there is none, pip brings it into a folder of its own.
UV_VERSION := 0.13.9
UV := $(or $(shell command -v uv),$(CACHE)/uv-$(UV_VERSION)/bin/uv)
TOOLS := .venv/bin/python -m tools
OPTIONS = $(if $(BASE),--base $(BASE)) $(if $(NAME),--name $(NAME))

export PYTHONDONTWRITEBYTECODE := 1

.DEFAULT_GOAL := help
.PHONY: help setup doctor data check train gguf ollama eval demo ollama-run clean-ollama test lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  RECIPE=$(RECIPE) QUANT=$(QUANT) ROOMS=$(ROOMS) BASE= NAME= can be set on the command line"

$(CACHE)/uv-$(UV_VERSION)/bin/uv:
	python3 -m pip install --quiet --disable-pip-version-check --target $(CACHE)/uv-$(UV_VERSION) uv==$(UV_VERSION)

.venv/.ready: requirements.lock | $(UV)
	@test -x .venv/bin/python || $(UV) venv --quiet --python 3.11 .venv
	$(UV) pip sync --require-hashes --python .venv requirements.lock
	@touch $@

setup: .venv/.ready ## .venv, llama.cpp and Ollama, each only when it is missing
	@$(TOOLS) setup

doctor: .venv/.ready ## what this machine has and lacks, and the command that mends it
	@$(TOOLS) doctor

data: .venv/.ready ## write data/train.jsonl and data/test.jsonl again: the same bytes
	@$(TOOLS) data

check: setup ## check a recipe and its data before training
	@$(TOOLS) check $(RECIPE) $(OPTIONS)

train: check ## train a recipe to an adapter; goes on where it was interrupted
	@$(TOOLS) train $(RECIPE) $(OPTIONS)

gguf: train ## merge, convert, quantise (QUANT=Q4_K_M)
	@$(TOOLS) gguf $(RECIPE) --quant $(QUANT) $(OPTIONS)

ollama: gguf ## give the model to Ollama and prove that it sees the tokens of training
	@$(TOOLS) ollama $(RECIPE) --quant $(QUANT) $(OPTIONS)

eval: ollama ## base and tuned model play unseen rooms (ROOMS=48)
	@$(TOOLS) eval $(RECIPE) --quant $(QUANT) --rooms $(ROOMS) $(OPTIONS)

demo: eval ## the whole chain on this machine's CPU, from set-up to a model that plays in Ollama
	@$(TOOLS) demo $(RECIPE) --quant $(QUANT) $(OPTIONS)

ollama-run: setup ## talk to the model
	@$(TOOLS) ollama-run $(RECIPE) $(OPTIONS)

clean-ollama: .venv/.ready ## remove our models from Ollama
	@$(TOOLS) clean-ollama

test: setup ## lint, types, and all tests with coverage
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/pytest --durations=15 --cov=tools --cov-report=term

lock: $(UV) ## pin again what pyproject.toml asks for
	$(UV) pip compile --quiet --generate-hashes --python-version 3.11 --custom-compile-command "make lock" \
	  pyproject.toml --output-file requirements.lock

clean: ## remove outputs/ and .venv; the cache stays
	rm -rf outputs .venv
