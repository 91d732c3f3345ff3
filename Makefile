# make demo      a whole run: data, training, evaluation (under 10 minutes;
#                SIZE=tiny to try it in seconds)
# make test      the tests that every change must pass
# make test-all  those and the slow ones
# make chaos     a run killed 200 times at random (hours; CHAOS=n for n times)
# make records   the runs behind the README's table (about an hour)
# make tables    the READMEs' tables, from schedules and records
# make lint      formatting and static checks

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
# Most of the tests' time is compilation, on one core each.
PARALLEL := -n auto --maxprocesses 4 --dist loadfile
GRID ?= both
SIZE ?= demo
# Three quarters of the baseline's epochs. The config has the paper's 1.5, which
# would take more than ten minutes together with the installation.
EPOCH_FACTOR ?= 0.75
CHAOS ?= 200
WORKDIR ?= runs/demo-$(shell date +%Y%m%d-%H%M%S)

.PHONY: demo test test-all chaos records tables lint clean

$(VENV)/installed: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mgjax needs Python 3.11 or newer; choose one with make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

demo: $(VENV)/installed
	@$(RUN) -m mgjax.data.moving_digits --out=data --config=$(if $(filter tiny,$(SIZE)),motion_tiny,motion)
	@$(RUN) -m mgjax.train --config=configs/moving_digits.py:grid=$(GRID),size=$(SIZE) --workdir=$(WORKDIR) --config.grid.epoch_factor=$(EPOCH_FACTOR)

test: $(VENV)/installed
	$(RUN) -m pytest $(PARALLEL) -m "not slow"

test-all: $(VENV)/installed
	$(RUN) -m pytest $(PARALLEL)

chaos: $(VENV)/installed
	MGJAX_CHAOS_SIGNALS=$(CHAOS) $(RUN) -m pytest tests/test_resume.py -k random_kills

records: $(VENV)/installed
	$(RUN) -m mgjax.data.moving_digits --out=data --config=motion
	$(RUN) -m experiments.launch --table=moving_digits --seeds=3 --run=local

tables: $(VENV)/installed
	$(RUN) -m experiments.tables

lint: $(VENV)/installed
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .

clean:
	rm -rf $(VENV) runs
