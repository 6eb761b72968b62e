"""Submissions to the Sim Agents challenge: checked before they are uploaded, and packed."""
