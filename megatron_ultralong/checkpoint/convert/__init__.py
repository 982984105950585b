"""The verbs of ``convert``: models from one format to another, proved bit by bit."""
