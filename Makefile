# The front door: every command a person types. `make` lists them.

# What a person may set, on the command line or in the environment.
VARIABLES := A ADAPTER ADAPTER_ONLY ALFWORLD B BASE COUNT DATA DRY_RUN FAIL_ON FIX FORCE FROM GPU GPUS GREEDY \
  HELD_OUT HTML HUB IMATRIX IN JSON MASTER_ADDR MASTER_PORT METHOD MODEL NAME NODES NODE_RANK OUT PER \
  PLACES QUANT QUANTS RECIPE ROOMS SEED SEQ SET SLIP STYLE TASKS TEST TIER TO VALIDATION WORLD
# It is text: make must not expand it, nor the shell read it as code. So each is taken literally and exported, and recipes
# name it as "$$NAME": whatever is in it, it is one argument. All else on the command line is taken literally too.
literal = $(eval override $1 := $$(value $1))$(eval export $1)
from = $(firstword $(origin $1))
$(foreach each,$(.VARIABLES),$(if $(filter command,$(call from,$(each))),$(call literal,$(each))))
$(foreach each,$(VARIABLES) HOME REACT_RECIPES_CACHE,\
  $(if $(filter environment,$(call from,$(each))),$(call literal,$(each))))

RECIPE ?= smollm2-135m-lora
QUANT ?= Q8_0
ROOMS ?= 48
export RECIPE QUANT ROOMS

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
TOOLS := .venv/bin/python -m tools

# --name="$NAME" where NAME= is given; what follows -- is no option, whatever it begins with.
option = $(if $($2),--$1="$$$2")
FORCED = $(if $(FORCE),--force)
OPTIONS = $(call option,base,BASE) $(call option,name,NAME)
EPISODES = $(if $(DATA),"$$DATA",data/train.jsonl data/test.jsonl)
# A recipe's name is looked up on TIER, by default this machine's; a path is taken as it is.
PATH_GIVEN = $(filter %.yaml %.yml,$(lastword $(RECIPE)))
CHOSEN = -- "$(if $(PATH_GIVEN),,$(if $(TIER),$$TIER/))$$RECIPE"
CHANGES = $(call option,base,BASE) $(if $(PATH_GIVEN),$(call option,tier,TIER)) $(call option,data,DATA) $(call option,set,SET)
# What a model is made of: what a recipe trained, or any adapter.
SUBJECT = $(if $(ADAPTER),--adapter="$$ADAPTER",$(CHOSEN))
# How a GGUF is made: quantised by what the training conversations use most; the adapter alone.
GUIDED = $(if $(IMATRIX),--imatrix)
ALONE = $(if $(ADAPTER_ONLY),--adapter-only)
PROCESSES = $(call option,gpus,GPUS) $(call option,nodes,NODES)
MEETING = $(call option,node-rank,NODE_RANK) $(call option,master-addr,MASTER_ADDR) $(call option,master-port,MASTER_PORT) \
  $(if $(DRY_RUN),--dry-run)

# Byte code is kept, beside neither our code nor the packages: compiling is half of the time that Axolotl takes to start.
unexport PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX := $(CACHE)/bytecode

.DEFAULT_GOAL := help
.PHONY: $(shell awk -F: '/^[a-z-]+:.*\#\# / {print $$1}' Makefile)

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' Makefile
	@printf '  RECIPE=%s QUANT=%s ROOMS=%s BASE= NAME= TIER= can be set on the command line\n' "$$RECIPE" "$$QUANT" "$$ROOMS"

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

doctor: .venv/.ready ## what this machine has and lacks, and the command that mends it
	@$(TOOLS) doctor

data: .venv/.ready ## write data/train.jsonl and data/test.jsonl again: the same bytes (FORCE=1)
	@$(TOOLS) data $(FORCED)

lint: .venv/.ready ## what is wrong with episodes, by file:line (DATA="a.jsonl ..." BASE= WORLD= FAIL_ON=warning FIX=out.jsonl FORCE=1)
	@$(TOOLS) lint $(call option,base,BASE) $(call option,sequence-len,SEQ) $(call option,world,WORLD) \
	  $(call option,fail-on,FAIL_ON) $(call option,fix,FIX) $(FORCED) -- $(EPISODES)

split: .venv/.ready ## train, validation and test with no room in two (DATA="a.jsonl ..." OUT=folder VALIDATION=0.1 TEST=0.1 SEED=0 FORCE=1)
	@$(TOOLS) split --out="$${OUT:-outputs/split}" $(call option,validation,VALIDATION) $(call option,test,TEST) \
	  $(call option,seed,SEED) $(FORCED) -- $(EPISODES)

stats: setup ## lengths in tokens, turns, tasks, actions, as a table and a page (DATA="a.jsonl ..." BASE= HTML= FORCE=1)
	@$(TOOLS) stats $(call option,base,BASE) --html="$${HTML:-outputs/stats.html}" $(if $(HTML),$(FORCED),--force) -- $(EPISODES)

convert: .venv/.ready ## episodes to another format (IN=... OUT=... TO=alpaca|sharegpt|messages|llamafactory FROM= PER=step FORCE=1)
	@$(TOOLS) convert --to="$$TO" $(call option,from,FROM) $(call option,per,PER) $(FORCED) -- "$$IN" "$$OUT"

episodes: .venv/.ready ## more household episodes (OUT=my.jsonl COUNT=1000 SEED=0 TASKS=put,look PLACES=kitchen STYLE=terse SLIP=0.2 ALFWORLD=train FORCE=1)
	@$(TOOLS) episodes $(call option,count,COUNT) $(call option,seed,SEED) $(call option,tasks,TASKS) $(call option,rooms,PLACES) \
	  $(call option,style,STYLE) $(call option,slip,SLIP) $(call option,alfworld,ALFWORLD) $(FORCED) -- "$$OUT"

recipes: .venv/.ready ## write recipes/ anew from catalog/ and templates/ (FORCE=1)
	@$(TOOLS) recipes $(FORCED)

list: .venv/.ready ## the models and the smallest tier for each method (TIER=24gb: its recipes)
	@$(TOOLS) list $(call option,tier,TIER) $(call option,model,MODEL)

recommend: .venv/.ready ## what this machine can train (or GPU=rtx4090 GPUS=2)
	@$(TOOLS) recommend $(call option,gpu,GPU) $(call option,gpus,GPUS)

plan: .venv/.ready ## where a recipe's memory goes, and whether it fits (TIER= GPU= SEQ= SET=)
	@$(TOOLS) plan $(if $(PATH_GIVEN),$(call option,tier,TIER)) $(call option,gpu,GPU) $(call option,gpus,GPUS) \
	  $(call option,seq,SEQ) $(call option,set,SET) $(CHOSEN)

new: .venv/.ready ## copy a recipe to edit (MODEL=qwen7b METHOD=qlora TIER=24gb OUT=my.yaml FORCE=1)
	@$(TOOLS) new $(call option,tier,TIER) $(FORCED) -- "$$MODEL" "$$METHOD" "$$OUT"

diff: .venv/.ready ## what differs between two recipes (A=... B=...)
	@$(TOOLS) diff -- "$$A" "$$B"

add-model: .venv/.ready ## a catalog entry from a model's config.json (HUB=org/name or a folder)
	@$(TOOLS) add-model -- "$$HUB"

check: setup ## check a recipe and its data before training (TIER= DATA= SET="k=v ...")
	@$(TOOLS) check $(CHANGES) $(FORCED) $(CHOSEN)

train: setup ## check, then train; goes on where it was interrupted (TIER= GPUS= NODES= DATA= SET= DRY_RUN=1)
	@$(TOOLS) train $(CHANGES) $(FORCED) $(PROCESSES) $(MEETING) $(CHOSEN)

resume: setup ## go on from the last checkpoint, or say that there is none
	@$(TOOLS) train --resume $(CHANGES) $(FORCED) $(PROCESSES) $(MEETING) $(CHOSEN)

slurm: .venv/.ready ## write a training as a Slurm job, and submit it where Slurm is
	@$(TOOLS) submit slurm $(CHANGES) $(PROCESSES) $(CHOSEN)

ray: .venv/.ready ## the same for a Ray cluster
	@$(TOOLS) submit ray $(CHANGES) $(PROCESSES) $(CHOSEN)

gguf: $(if $(ADAPTER),setup,train) ## adapter and base to GGUF in one pass (QUANTS="Q4_K_M Q8_0" IMATRIX=1; ADAPTER= BASE= of any; ADAPTER_ONLY=1)
	@$(TOOLS) gguf --quant="$${QUANTS:-$$QUANT}" $(call option,base,BASE) $(GUIDED) $(ALONE) $(SUBJECT)

ollama: gguf ## give the model to Ollama, its tokens proven (NAME=; FORCE=1 takes a taken name; ADAPTER= BASE= of any; ADAPTER_ONLY=1 FROM=)
	@$(TOOLS) ollama --quant="$$QUANT" $(OPTIONS) $(FORCED) $(ALONE) $(call option,from,FROM) $(SUBJECT)

parity: gguf ## the same tokens and answers in training and in every server, or the first difference (GREEDY=0)
	@$(TOOLS) parity --quant="$$QUANT" $(OPTIONS) $(if $(filter 0,$(GREEDY)),--no-greedy) $(if $(JSON),--json) $(SUBJECT)

quality: train ## what quantising costs: size, perplexity, KL against f16 (QUANTS="Q4_K_M Q8_0" IMATRIX=1 HELD_OUT=)
	@$(TOOLS) quality $(call option,quants,QUANTS) $(call option,base,BASE) $(GUIDED) $(call option,data,HELD_OUT) $(CHOSEN)

merge: train ## the whole model as safetensors, for transformers and vLLM
	@$(TOOLS) merge $(call option,base,BASE) $(CHOSEN)

export: gguf ## folders for LM Studio, vLLM, llama-server and the hub, each with its command (TO=vllm)
	@$(TOOLS) export --quant="$$QUANT" $(OPTIONS) $(call option,to,TO) $(CHOSEN)

eval: ollama ## base and tuned model play unseen rooms (ROOMS=48)
	@$(TOOLS) eval --quant="$$QUANT" --rooms="$$ROOMS" $(OPTIONS) $(CHOSEN)

demo: eval ## the whole chain on this machine's CPU, from set-up to a model that plays in Ollama
	@$(TOOLS) demo --quant="$$QUANT" $(OPTIONS) $(CHOSEN)

ollama-run: setup ## talk to the model
	@$(TOOLS) ollama-run $(OPTIONS) $(CHOSEN)

ollama-rm: .venv/.ready ## remove one of our models from Ollama (NAME=react-smollm2)
	@$(TOOLS) ollama-rm -- "$$NAME"

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
	"$$UV" $(PIN) --no-annotate tests/parts/locks/llamafactory.in --output-file tests/parts/locks/llamafactory.lock
	"$$UV" $(PIN) --no-deps --no-annotate --group household --output-file tests/parts/household/engine.lock

clean: ## remove outputs/ and .venv; the cache stays
	rm -rf outputs .venv
