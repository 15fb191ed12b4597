"""Calibration: what layers see of real data, for criteria that choose weights by it."""
