"""`model.path` and `model.device` -> what transformers and torch have of them."""
