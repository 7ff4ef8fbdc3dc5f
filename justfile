# The names of everyday commands; `just` lists them.

default:
    @just --list

# Install the checkout with all tools
setup:
    pip install -e ".[dev]"

# Run the tests, or those named
test *ARGS:
    pytest {{ARGS}}

# Run the tests that take less than two seconds each
quick:
    pytest -m "not slow"

# Lint
lint:
    ruff check .

# Format
format:
    ruff format .

# Check types
types:
    mypy

# Build the documentation as a site into build/site; a dead link fails
docs:
    NO_MKDOCS_2_WARNING=1 mkdocs build

# Execute the notebooks of the docs anew and keep their outputs
notebooks:
    python docs/notebooks/execute.py

# All that a change has to pass
check: lint types test docs

# What a new user does, in a fresh environment
ci:
    .ci/run
