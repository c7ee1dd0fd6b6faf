# The front door: every command a person types. `make` lists them.

# A variable is an option of the command behind the target: SEQ=4096 is --seq=4096. tools/core/make_variables.py hands
# each command those that it takes, and refuses what no target of the chain takes; docs/cli.md lists the options.
# A variable is text: make must not expand it, nor the shell read it as code. So what was typed is taken literally and
# exported, and no recipe below names it.
literal = $(eval override $1 := $$(value $1))$(eval export $1)
from = $(firstword $(origin $1))
typed := $(foreach each,$(.VARIABLES),$(if $(filter command,$(call from,$(each))),$(each)))
$(foreach each,$(typed),$(call literal,$(each)))
$(foreach each,HOME REACT_RECIPES_CACHE,$(if $(filter environment,$(call from,$(each))),$(call literal,$(each))))
export MAKE_TYPED := $(filter-out REACT_RECIPES_%,$(typed))
export MAKE_GOALS := $(MAKECMDGOALS)

ifeq (,$(filter-out clean docs help lock,$(MAKECMDGOALS)))
ifneq (,$(MAKE_TYPED))
$(error $(MAKE_TYPED): make $(or $(MAKECMDGOALS),help) takes no variables; `make` lists the targets and theirs)
endif
endif

# Defaults:
export RECIPE ?= smollm2-135m-lora
lint split stats: export DATA ?= data/train.jsonl data/test.jsonl

ifeq (,$(HOME)$(REACT_RECIPES_CACHE))
ifneq (,$(filter-out help clean,$(MAKECMDGOALS)))
$(error neither HOME nor REACT_RECIPES_CACHE is set; set one, so that there is a place for the cache)
endif
endif
CACHE := $(or $(REACT_RECIPES_CACHE),$(HOME)/.cache/react-recipes)
# uv makes .venv from requirements.lock; where there is none, pip brings it into a folder of its own.
export UV_VERSION := 0.13.9
export OWN_UV := $(CACHE)/uv-$(UV_VERSION)
export UV := $(or $(shell command -v uv 2>/dev/null),$(OWN_UV)/bin/uv)
TOOLS = .venv/bin/python -m tools --from-make $@
AS_DEMO :=

# Byte code is kept, beside neither our code nor the packages: compiling is half of the time that Axolotl takes to start.
unexport PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX := $(CACHE)/bytecode

.DEFAULT_GOAL := help
.PHONY: $(shell awk -F: '/^[a-z-]+:.*\#\# / {print $$1}' Makefile)

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' Makefile
	@echo '  A target takes every option of its command as a variable, --seq 4096 as SEQ=4096: docs/cli.md lists them.'

# A set-up that was stopped is completed by the next: uv has its name when it is whole, .venv has .ready when it is.
GET_UV = command -v "$$UV" >/dev/null || { \
  part="$${OWN_UV%/*}/.$${OWN_UV\#\#*/}.$$$$"; trap 'rm -rf "$$part"' EXIT; trap 'exit 1' HUP INT TERM; \
  python3 -m pip install --quiet --disable-pip-version-check --target "$$part" "uv==$$UV_VERSION" && \
  { command -v "$$UV" >/dev/null || { rm -rf "$$OWN_UV" && mv "$$part" "$$OWN_UV"; }; }; }

.venv/.ready: requirements.lock
	@$(GET_UV)
	@test -e $@ && test -x .venv/bin/python || "$$UV" venv --quiet --python 3.11 --allow-existing .venv
	"$$UV" pip sync --require-hashes --python .venv requirements.lock
	@touch $@

setup: .venv/.ready ## .venv, llama.cpp and Ollama, each only when it is missing
	@$(TOOLS) setup

doctor: .venv/.ready ## what this machine has and lacks, and the command that fixes it
	@$(TOOLS) doctor

data: .venv/.ready ## write data/train.jsonl and data/test.jsonl again: the same bytes (FORCE=1)
	@$(TOOLS) data

lint: .venv/.ready ## report problems in episodes, by file:line (DATA="a.jsonl ..." BASE= WORLD= FAIL_ON=warning FIX=out.jsonl FORCE=1)
	@$(TOOLS) lint

split: .venv/.ready ## split into train, validation and test; no room in two (DATA="a.jsonl ..." OUT=folder VALIDATION=0.1 TEST=0.1 SEED=0 FORCE=1)
	@$(TOOLS) split

stats: setup ## lengths in tokens, turns, tasks, actions, as a table and a page (DATA="a.jsonl ..." BASE= HTML= FORCE=1)
	@$(TOOLS) stats $(if $(value HTML),,--html=outputs/stats.html --force)

convert: .venv/.ready ## episodes to another format (IN=... OUT=my.jsonl|.json|.parquet TO=messages|sharegpt|alpaca|llamafactory FROM= ON_ERROR=skip APART= TRIM=1 ROLE= PER=step TEST=0.1 FORCE=1)
	@$(TOOLS) convert

episodes: .venv/.ready ## more household episodes (OUT=my.jsonl COUNT=1000 SEED=0 TASKS=put,look PLACES=kitchen STYLE=terse SLIP=0.2 ALFWORLD=train FORCE=1)
	@$(TOOLS) episodes

recipes: .venv/.ready ## write recipes/ from catalog/ and templates/ (FORCE=1)
	@$(TOOLS) recipes

list: .venv/.ready ## the models and the smallest tier for each method (TIER=24gb: its recipes; MODEL=qwen)
	@$(TOOLS) list

recommend: .venv/.ready ## what this machine can train (or GPU=rtx4090 GPUS=2)
	@$(TOOLS) recommend

plan: .venv/.ready ## where a recipe's memory goes, and whether it fits (RECIPE= TIER= GPU= GPUS= SEQ= SET=)
	@$(TOOLS) plan

new: .venv/.ready ## copy a recipe to edit (MODEL=qwen7b METHOD=qlora TIER=24gb SEQ= OUT=my.yaml FORCE=1)
	@$(TOOLS) new

fit: setup ## a recipe for your episodes: sequence, batch, epochs (DATA=my.jsonl MODEL=qwen7b OUT=my.yaml METHOD= TIER= GPU= GPUS= BASE= SEQ= FORCE=1)
	@$(TOOLS) fit

diff: .venv/.ready ## what differs between two recipes (A=... B=...)
	@$(TOOLS) diff

add-model: .venv/.ready ## a catalog entry from a model's config.json (HUB=org/name or a folder)
	@$(TOOLS) add-model

check: setup ## check a recipe and its data before training (RECIPE= TIER= DATA= SEQ= SET="k=v ...")
	@$(TOOLS) check

train: setup ## check, then train; an interrupted training resumes (RECIPE= TIER= GPUS= NODES= DATA= SEQ= SET= DRY_RUN=1 TRAINER=llamafactory, trl or unsloth)
	@$(TOOLS) train $(AS_DEMO)

resume: setup ## resume from the last checkpoint; fail if there is none (RECIPE=)
	@$(TOOLS) train --resume

webui: setup ## LLaMA-Factory's web page with a recipe and its data filled in (RECIPE= TIER= DATA= SEQ= SET= PORT=7860)
	@$(TOOLS) webui

ui: setup ## a page over these commands: choose, edit, train, watch, ask, play (PORT=7870 HOST=127.0.0.1 LANG=zh)
	@$(TOOLS) ui

slurm: .venv/.ready ## write a training as a Slurm job, and submit it if Slurm is here (RECIPE= TIER= NODES=)
	@$(TOOLS) submit slurm

ray: .venv/.ready ## the same for a Ray cluster (RECIPE= TIER= NODES=)
	@$(TOOLS) submit ray

gguf: $(if $(value ADAPTER)$(value MODEL),setup,train) ## adapter and base to GGUF in one pass (RECIPE= QUANT="Q4_K_M Q8_0" IMATRIX=1; ADAPTER= or MODEL= of any, BASE=; ADAPTER_ONLY=1)
	@$(TOOLS) gguf

ollama: gguf ## import the model into Ollama, its tokens and weights proven (RECIPE= QUANT= NAME= NUM_CTX= PROOF=tokens FORCE=1; ADAPTER= or MODEL= of any, BASE=; ADAPTER_ONLY=1 OLLAMA_BASE=)
	@$(TOOLS) ollama

parity: $(if $(value GGUF),setup,gguf) ## the same tokens, weights and answers in training and in every server, or the first difference (RECIPE= GREEDY=0 JSON=1; GGUF= BASE= of any)
	@$(TOOLS) parity

quality: $(if $(value ADAPTER)$(value MODEL),setup,train) ## what quantising costs: size, perplexity, KL against f16 (RECIPE= QUANT="Q4_K_M Q8_0" IMATRIX=1 HELD_OUT=)
	@$(TOOLS) quality

merge: $(if $(value ADAPTER)$(value MODEL),setup,train) ## the whole model as safetensors, for transformers and vLLM (RECIPE=)
	@$(TOOLS) merge

export: $(if $(filter llamafactory trl unsloth,$(value TO)),setup,gguf) ## folders for LM Studio, vLLM, llama-server and the hub, each with its command (RECIPE= TO=vllm); the recipe for another trainer (TO=llamafactory, trl or unsloth DATA=)
	@$(TOOLS) export

eval: $(if $(value URL),setup,ollama) ## base and tuned model play unseen rooms (RECIPE= ROOMS=48 WORLD= SPLIT=seen BACKEND= PROMPTING=few-shot PARSE=lenient REPEAT=4 TEMPERATURE=0.7; URL= NAME= of any server)
	@$(TOOLS) eval

collect: $(if $(value URL)$(value TEACHER),setup,ollama) ## a teacher plays training rooms: wins become episodes, lost twins pairs (RECIPE= ROOMS=200 REPEAT=4 TEMPERATURE=0.7 WORLD= OUT=folder; URL= NAME= PRICE="in out" BUDGET= of a server; TEACHER=expert SLIP=)
	@$(TOOLS) collect

score: ollama ## base and tuned model answer the test set, each turn after the true ones before it (RECIPE= HELD_OUT=)
	@$(TOOLS) score

report: .venv/.ready ## a run's games as a page: what was won, how it was lost, every game (RECIPE=)
	@$(TOOLS) report

compare: .venv/.ready ## two models on the same tasks, with a paired test (A=... B=... recipes or eval-*.json; QUANT=)
	@$(TOOLS) compare

runs: .venv/.ready ## all runs: date, loss, rooms won, parity (JSON=1)
	@$(TOOLS) runs

ask: $(if $(value ADAPTER)$(value MODEL),setup,train) $(if $(filter transformers,$(value BACKEND)),,gguf) ## base and tuned model answer side by side (RECIPE= PROMPT="..." or CONVERSATION=my.json, BACKEND=ollama|llama-server|transformers QUANT=; ADAPTER= or MODEL= of any, BASE=)
	@$(TOOLS) ask

# On a GPU the demo trains on more than the recipe's data; make hands this on to the targets that it needs first.
demo: AS_DEMO = --demo
demo: eval ## the whole chain on this machine, from set-up to a model that plays in Ollama
	@$(TOOLS) demo

ollama-run: setup ## talk to the model (RECIPE= NAME=)
	@$(TOOLS) ollama-run

ollama-rm: .venv/.ready ## remove one of our models from Ollama (NAME=react-smollm2)
	@$(TOOLS) ollama-rm

clean-ollama: .venv/.ready ## remove our models from Ollama
	@$(TOOLS) clean-ollama

test: setup ## lint, types, and all tests with coverage
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports --no-logo
	.venv/bin/pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder --durations 15 --cov tools --cov-report term

test-fast: .venv/.ready ## the tests that need no training, no build and no server: two minutes on two cores
	.venv/bin/pytest -m "not slow and not heavy" --numprocesses 2 --dist loadfile

docs: .venv/.ready ## write docs/cli.md, the page of all commands and options, anew
	.venv/bin/python -m typer tools.cli utils docs --name "python -m tools" --title "The command line" --output docs/cli.md

PIN = pip compile --quiet --generate-hashes --python-version 3.11 --custom-compile-command "make lock"
lock: ## pin again what pyproject.toml asks for
	@$(GET_UV)
	"$$UV" $(PIN) --extra train --group test --group lint pyproject.toml --output-file requirements.lock
	"$$UV" $(PIN) --no-annotate locks/llamafactory.in --output-file locks/llamafactory.lock
	"$$UV" $(PIN) --no-annotate locks/unsloth.in --output-file locks/unsloth.lock
	"$$UV" $(PIN) --no-annotate pyproject.toml tests/parts/locks/inspect.in --output-file tests/parts/locks/inspect.lock
	"$$UV" $(PIN) --no-deps --no-annotate --group household --output-file tests/parts/household/engine.lock

clean: ## remove outputs/ and .venv; the cache stays
	rm -rf outputs .venv
