"""How a program here behaves: errors, its end, progress, ranks, files of its own."""
