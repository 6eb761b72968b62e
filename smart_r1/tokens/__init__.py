"""Motion and map tokens: their vocabularies, how they are built, matching and playing out."""
