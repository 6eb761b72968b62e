"""The vocabulary of the package, and how it is made: see `__main__`."""
