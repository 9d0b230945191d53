"""Tickets in other people's engines."""
