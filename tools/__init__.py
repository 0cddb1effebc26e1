"""Scripts that write parts of the documentation: run each as `python -m tools.NAME`."""
