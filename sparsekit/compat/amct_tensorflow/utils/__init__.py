"""AMCT's package layout: scripts import ``amct_tensorflow.utils.log``."""
