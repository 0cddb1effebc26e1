from tests.cli.conftest import sparsify as sparsify
