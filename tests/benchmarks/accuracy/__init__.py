"""What pruning costs in accuracy, on networks trained here and on networks that others made."""
