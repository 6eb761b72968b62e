"""Bytes to scenes and rollouts, and back."""
