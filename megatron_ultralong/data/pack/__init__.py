"""Documents to rows of exactly the asked length."""
