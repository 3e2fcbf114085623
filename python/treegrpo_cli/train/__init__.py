"""Trees -> new weights: trainer, policy, loss, head, attention paths, planner, checkpoints."""
