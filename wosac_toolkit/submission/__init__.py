"""Submissions to Sim Agents and Scenario Generation: checked before the upload, and packed."""
