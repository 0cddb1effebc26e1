"""The HTML page: sections, tables and figures in one self-contained file."""
