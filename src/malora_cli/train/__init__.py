"""Training one recipe: the Trainer subclass, the loss of every task, checkpoints and what is shown meanwhile."""
