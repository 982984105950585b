"""How a model is asked: samples, and the one loop that puts them to it."""
