"""Calibrated pruning: sample inputs through the model, layer by layer, the already pruned upstream."""
