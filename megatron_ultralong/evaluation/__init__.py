"""Evaluation: loss by position, passkey retrieval, pictures and reports."""
