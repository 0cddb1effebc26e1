"""Several processes that train one model: how they were started, and how they communicate."""
