"""Many runs of one recipe: the product of varied values and seeds, in a queue that may be killed and restarted."""
