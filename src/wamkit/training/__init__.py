"""One loop for every stage of every model: configs, optimiser, checkpoints, exact resume, several processes."""
