.PHONY: check test docs bench

check:
	ruff check .
	ruff format --check .
	mypy

test:
	pytest
	pytest -m sample

# The site, in site/; needs the extra `docs`. Written pages and pictures: python -m tools.recipe_keys, tools.pictures.
docs:
	zensical build --strict

# A network on the engine and its peers; python -m benchmarks.NAME for the tables of benchmarks/results.md.
bench:
	python -m benchmarks.runtime --only cifar:resnet32 --batches 1 --rounds 3
