"""Readers of fsmer against damaged and hostile input; ``python -m tests.fuzz`` runs them."""
