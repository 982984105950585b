"""What evaluations find: one type, its files, its tables and pictures."""
