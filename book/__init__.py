"""The book: the notebooks and what came out of them as a static site; `make book` builds it."""
