"""Many runs of one recipe: the product of the values that are varied and of seeds, in a queue that can be killed."""
