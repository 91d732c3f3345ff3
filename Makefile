# make demo      a whole run: data, training, evaluation (under 10 minutes;
#                SIZE=tiny to try it in seconds; COMPARE=1 trains a baseline for
#                the same seconds after it)
# make test      the tests that every change must pass
# make test-all  those and the slow ones
# make smoke     a tiny demo and the decoding tests: does a Python work at all?
# make chaos     runs in five setups, killed 200 times at random (CHAOS=n times)
# make records   the runs behind the README's picture, two at a time (hours; those
#                that have records are not made again); FRESH=1: all of them, into
#                a folder of their own, and compared with the stored ones
# make tables    the tables and pictures of the READMEs and docs
# make lint      formatting, static checks and types

# VENV is where the packages go, PYTHON=python3.13 chooses a Python. Without it
# an environment that is there is used, whatever Python it was made with.
VENV ?= .venv
PYTHON ?= $(if $(wildcard $(VENV)/installed-*),$(VENV)/bin/python,python3)
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
# Another Python makes the environment anew.
INSTALLED := $(VENV)/installed-$(VERSION)
RUN := $(VENV)/bin/python
# Most of the tests' time is compilation, on one core each. Files that take
# minutes begin first (tests/conftest.py), not those with the most tests.
PARALLEL := -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
GRID ?= both
SIZE ?= demo
# The same training and validation videos as motion, without its test videos.
DIGITS := $(if $(filter tiny,$(SIZE)),motion_tiny,motion_demo)
# The baseline's epochs. The config has the paper's 1.5 times as many, which
# would take ten minutes together with the installation.
EPOCH_FACTOR ?= 1.0
CHAOS ?= 200
TABLE ?= front
SEEDS ?= 3
# Runs at a time, each on CPUs of its own.
JOBS ?= 2
# Where FRESH=1 goes on another day: RECORDS=runs/records-DATE.
RECORDS ?= runs/records-$(shell date +%Y%m%d)
# Once: another second would be another folder.
ifndef WORKDIR
WORKDIR := runs/demo-$(shell date +%Y%m%d-%H%M%S)
endif
TRAINING = --config=configs/moving_digits.py:grid=$(GRID),size=$(SIZE) --workdir=$(WORKDIR) --config.data.name=moving_digits/$(DIGITS) --config.grid.epoch_factor=$(EPOCH_FACTOR)

.PHONY: demo test test-all smoke chaos records tables lint clean

$(INSTALLED): requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mgjax needs Python 3.11 or newer; choose one with make PYTHON=python3.12")'
	test -e $@ || $(PYTHON) -m venv --clear $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

demo: $(INSTALLED)
	@$(RUN) -m mgjax.data.moving_digits --out=data --config=$(DIGITS)
	@$(RUN) -m experiments.demo $(TRAINING)
	@$(RUN) -m mgjax.train $(TRAINING)
	@$(RUN) -m experiments.demo $(TRAINING) $(if $(COMPARE),--compare)

test: $(INSTALLED)
	$(RUN) -m pytest $(PARALLEL) -m "not slow"

test-all: $(INSTALLED)
	$(RUN) -m pytest $(PARALLEL)

smoke:
	$(MAKE) demo SIZE=tiny
	$(RUN) -m pytest $(PARALLEL) -m "not slow" tests/data/test_decode.py tests/data/prepare/test_transcode.py tests/data/test_bad_videos.py

chaos: $(INSTALLED)
	MGJAX_CHAOS_SIGNALS=$(CHAOS) $(RUN) -m pytest tests/run/test_resume.py -k random_kills

records: $(INSTALLED)
	$(RUN) -m mgjax.data.moving_digits --out=data --config=motion
	$(RUN) -m experiments.runs.launch --table=$(TABLE) --seeds=$(SEEDS) --run=local --jobs=$(JOBS) $(if $(FRESH),--records=$(RECORDS) --workdir=$(RECORDS)/runs)
	$(if $(FRESH),$(RUN) -m experiments.runs.compare --table=$(TABLE) --records=$(RECORDS))

tables: $(INSTALLED)
	$(RUN) -m experiments.tables

lint: $(INSTALLED)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

clean:
	rm -rf .venv .venv-* runs
