.PHONY: check test bench

check:
	ruff check .
	ruff format --check .
	mypy

test:
	pytest
	pytest -m sample

# A network on the engine and its peers; python -m benchmarks.NAME for the tables of benchmarks/results.md.
bench:
	python -m benchmarks.runtime --only cifar:resnet32 --batches 1 --rounds 3
