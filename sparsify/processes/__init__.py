"""Several processes that train one model: how they were started, and what they tell each other."""
