"""Runwarden's daemon. The architecture document is written here."""
