"""Documents and conversations from files of many formats."""
