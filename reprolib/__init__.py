"""Helper library of the notebook suite: losses, checks of their theory, data, training, evaluation."""

__version__ = "0.1.0"
