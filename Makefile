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
# A recipe's name is looked up on TIER, by default this machine's; a path is taken as it is.
PATH_GIVEN = $(filter %.yaml %.yml,$(RECIPE))
CHOSEN = $(if $(PATH_GIVEN),,$(if $(TIER),$(TIER)/))$(RECIPE)
CHANGES = $(if $(BASE),--base $(BASE)) $(if $(and $(PATH_GIVEN),$(TIER)),--tier $(TIER)) $(if $(DATA),--data $(DATA)) \
  $(foreach each,$(SET),--set '$(each)') $(if $(FORCE),--force)
# What a model is made of: what a recipe trained, or any adapter.
SUBJECT = $(if $(ADAPTER),--adapter $(ADAPTER),$(CHOSEN))
# How a GGUF is made: quantised by what the training conversations use most; the adapter alone.
GUIDED = $(if $(IMATRIX),--imatrix)
ALONE = $(if $(ADAPTER_ONLY),--adapter-only)
PROCESSES = $(if $(GPUS),--gpus $(GPUS)) $(if $(NODES),--nodes $(NODES))
MEETING = $(if $(NODE_RANK),--node-rank $(NODE_RANK)) $(if $(MASTER_ADDR),--master-addr $(MASTER_ADDR)) \
  $(if $(MASTER_PORT),--master-port $(MASTER_PORT)) $(if $(DRY_RUN),--dry-run)

# Byte code is kept, beside neither our code nor the packages: compiling is half of the time that Axolotl takes to start.
unexport PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX := $(CACHE)/bytecode

.DEFAULT_GOAL := help
.PHONY: $(shell awk -F: '/^[a-z-]+:.*\#\# / {print $$1}' Makefile)

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  RECIPE=$(RECIPE) QUANT=$(QUANT) ROOMS=$(ROOMS) BASE= NAME= TIER= can be set on the command line"

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

lint: .venv/.ready ## what is wrong with episodes, by file:line (DATA="a.jsonl ..." BASE= WORLD= FAIL_ON=warning FIX=out.jsonl)
	@$(TOOLS) lint $(or $(DATA),data/train.jsonl data/test.jsonl) $(if $(BASE),--base $(BASE)) $(if $(SEQ),--sequence-len $(SEQ)) \
	  $(if $(WORLD),--world $(WORLD)) $(if $(FAIL_ON),--fail-on $(FAIL_ON)) $(if $(FIX),--fix $(FIX))

split: .venv/.ready ## train, validation and test with no room in two (DATA="a.jsonl ..." OUT=folder VALIDATION=0.1 TEST=0.1 SEED=0)
	@$(TOOLS) split $(or $(DATA),data/train.jsonl data/test.jsonl) --out $(or $(OUT),outputs/split) \
	  $(if $(VALIDATION),--validation $(VALIDATION)) $(if $(TEST),--test $(TEST)) $(if $(SEED),--seed $(SEED))

stats: setup ## lengths in tokens, turns, tasks, actions, as a table and a page (DATA="a.jsonl ..." BASE= HTML=)
	@$(TOOLS) stats $(or $(DATA),data/train.jsonl data/test.jsonl) $(if $(BASE),--base $(BASE)) \
	  --html $(or $(HTML),outputs/stats.html)

convert: .venv/.ready ## episodes to another format (IN=... OUT=... TO=alpaca|sharegpt|messages|llamafactory FROM= PER=step)
	@$(TOOLS) convert $(or $(IN),'') $(or $(OUT),'') --to $(or $(TO),'') $(if $(FROM),--from $(FROM)) $(if $(PER),--per $(PER))

episodes: .venv/.ready ## more household episodes (OUT=my.jsonl COUNT=1000 SEED=0 TASKS=put,look PLACES=kitchen STYLE=terse SLIP=0.2 ALFWORLD=train)
	@$(TOOLS) episodes $(or $(OUT),'') $(if $(COUNT),--count $(COUNT)) $(if $(SEED),--seed $(SEED)) $(if $(TASKS),--tasks $(TASKS)) \
	  $(if $(PLACES),--rooms $(PLACES)) $(if $(STYLE),--style $(STYLE)) $(if $(SLIP),--slip $(SLIP)) $(if $(ALFWORLD),--alfworld $(ALFWORLD))

recipes: .venv/.ready ## write recipes/ anew from catalog/ and templates/
	@$(TOOLS) recipes

list: .venv/.ready ## the recipes, model by tier (TIER=24gb for all of a tier)
	@$(TOOLS) list $(if $(TIER),--tier $(TIER)) $(if $(MODEL),--model $(MODEL))

recommend: .venv/.ready ## what this machine can train (or GPU=rtx4090 GPUS=2)
	@$(TOOLS) recommend $(if $(GPU),--gpu $(GPU)) $(if $(GPUS),--gpus $(GPUS))

plan: .venv/.ready ## where a recipe's memory goes, and whether it fits (TIER= GPU= SEQ= SET=)
	@$(TOOLS) plan $(CHOSEN) $(if $(and $(PATH_GIVEN),$(TIER)),--tier $(TIER)) $(if $(GPU),--gpu $(GPU)) \
	  $(if $(GPUS),--gpus $(GPUS)) $(if $(SEQ),--seq $(SEQ)) $(foreach each,$(SET),--set '$(each)')

new: .venv/.ready ## copy a recipe to edit (MODEL=qwen7b METHOD=qlora TIER=24gb OUT=my.yaml)
	@$(TOOLS) new $(or $(MODEL),'') $(or $(METHOD),'') $(or $(OUT),'') $(if $(TIER),--tier $(TIER))

diff: .venv/.ready ## what differs between two recipes (A=... B=...)
	@$(TOOLS) diff $(or $(A),'') $(or $(B),'')

add-model: .venv/.ready ## a catalog entry from a model's config.json (HUB=org/name or a folder)
	@$(TOOLS) add-model $(or $(HUB),'')

check: setup ## check a recipe and its data before training (TIER= DATA= SET="k=v ...")
	@$(TOOLS) check $(CHOSEN) $(CHANGES)

train: setup ## check, then train; goes on where it was interrupted (TIER= GPUS= NODES= DATA= SET= DRY_RUN=1)
	@$(TOOLS) train $(CHOSEN) $(CHANGES) $(PROCESSES) $(MEETING)

resume: setup ## go on from the last checkpoint, or say that there is none
	@$(TOOLS) train $(CHOSEN) $(CHANGES) $(PROCESSES) $(MEETING) --resume

slurm: .venv/.ready ## write a training as a Slurm job, and submit it where Slurm is
	@$(TOOLS) submit slurm $(CHOSEN) $(filter-out --force,$(CHANGES)) $(PROCESSES)

ray: .venv/.ready ## the same for a Ray cluster
	@$(TOOLS) submit ray $(CHOSEN) $(filter-out --force,$(CHANGES)) $(PROCESSES)

gguf: $(if $(ADAPTER),setup,train) ## adapter and base to GGUF in one pass (QUANTS="Q4_K_M Q8_0" IMATRIX=1; ADAPTER= BASE= of any; ADAPTER_ONLY=1)
	@$(TOOLS) gguf $(SUBJECT) --quant '$(or $(QUANTS),$(QUANT))' \
	  $(if $(BASE),--base $(BASE)) $(GUIDED) $(ALONE)

ollama: gguf ## give the model to Ollama, its tokens proven (NAME=; FORCE=1 takes a taken name; ADAPTER= BASE= of any; ADAPTER_ONLY=1 FROM=)
	@$(TOOLS) ollama $(SUBJECT) --quant $(QUANT) $(OPTIONS) $(if $(FORCE),--force) $(ALONE) $(if $(FROM),--from $(FROM))

parity: gguf ## the same tokens and answers in training and in every server, or the first difference (GREEDY=0)
	@$(TOOLS) parity $(SUBJECT) --quant $(QUANT) $(OPTIONS) $(if $(filter 0,$(GREEDY)),--no-greedy) $(if $(JSON),--json)

quality: train ## what quantising costs: size, perplexity, KL against f16 (QUANTS="Q4_K_M Q8_0" IMATRIX=1 HELD_OUT=)
	@$(TOOLS) quality $(CHOSEN) $(if $(QUANTS),--quants '$(QUANTS)') $(if $(BASE),--base $(BASE)) $(GUIDED) \
	  $(if $(HELD_OUT),--data $(HELD_OUT))

merge: train ## the whole model as safetensors, for transformers and vLLM
	@$(TOOLS) merge $(CHOSEN) $(if $(BASE),--base $(BASE))

export: gguf ## folders for LM Studio, vLLM, llama-server and the hub, each with its command (TO=vllm)
	@$(TOOLS) export $(CHOSEN) --quant $(QUANT) $(OPTIONS) $(foreach each,$(TO),--to $(each))

eval: ollama ## base and tuned model play unseen rooms (ROOMS=48)
	@$(TOOLS) eval $(CHOSEN) --quant $(QUANT) --rooms $(ROOMS) $(OPTIONS)

demo: eval ## the whole chain on this machine's CPU, from set-up to a model that plays in Ollama
	@$(TOOLS) demo $(CHOSEN) --quant $(QUANT) $(OPTIONS)

ollama-run: setup ## talk to the model
	@$(TOOLS) ollama-run $(CHOSEN) $(OPTIONS)

ollama-rm: .venv/.ready ## remove one of our models from Ollama (NAME=react-smollm2)
	@$(TOOLS) ollama-rm $(or $(NAME),'')

clean-ollama: .venv/.ready ## remove our models from Ollama
	@$(TOOLS) clean-ollama

test: setup ## lint, types, and all tests with coverage
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder --durations 15 --cov tools --cov-report term

lock: $(UV) ## pin again what pyproject.toml asks for
	$(UV) pip compile --quiet --generate-hashes --python-version 3.11 --custom-compile-command "make lock" \
	  pyproject.toml --output-file requirements.lock
	$(UV) pip compile --quiet --no-annotate --generate-hashes --python-version 3.11 --custom-compile-command "make lock" \
	  tests/locks/llamafactory.in --output-file tests/locks/llamafactory.lock
	$(UV) run --no-project --python 3.11 python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['household'], sep='\n')" | \
	  $(UV) pip compile --quiet --no-deps --generate-hashes --python-version 3.11 --custom-compile-command "make lock" \
	  - --output-file tests/household/engine.lock

clean: ## remove outputs/ and .venv; the cache stays
	rm -rf outputs .venv
