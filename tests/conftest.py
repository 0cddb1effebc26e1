"""What holds for all tests."""

import os

# Nothing that is tuned in a test is kept for the user's engines, or known from them; a test sets a folder of its own.
os.environ["SPARSIFY_CACHE"] = os.devnull
