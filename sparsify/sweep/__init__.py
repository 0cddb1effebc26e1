"""Many runs of one recipe: the product of varied values and seeds, in a queue that survives a kill."""
