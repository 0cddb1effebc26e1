"""The HTML page: sections, tables and figures in one file that needs nothing else."""
