# The commands that a person and CI run. Each makes the environment first, if it is not there yet.
#
#   make quickstart                     train on E. coli, start to end
#   make quickstart GENOME=my.fa.gz RUN=runs/mine
#   make test                           all tests
#   make check                          format, lint, types, direction of imports

PYTHON ?= python3
VENV ?= .venv
GENOME ?= ecoli_k12
RUN ?= runs/quickstart
# Tests that run at a time; many of them start ranks of their own.
JOBS ?= 2

READY := $(VENV)/.requirements-installed

.PHONY: quickstart test check format environment

quickstart: $(READY)
	launch/quickstart.sh "$(GENOME)" "$(RUN)"

test: $(READY)
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(VENV)/bin/python -m pytest --numprocesses=$(JOBS) --dist=loadfile --no-loadscope-reorder

check: $(READY)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

format: $(READY)
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

environment: $(READY)

$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$(PYTHON) is older than Python 3.11; name a newer one: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --requirement requirements.txt
	$(VENV)/bin/pip install --quiet --no-deps --editable .
	touch $@
