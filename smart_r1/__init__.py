"""SMART, and its reinforcement fine-tuning on the realism meta-metric.

Imports `wosac_toolkit`, never the other way round.
"""
