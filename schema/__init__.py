"""Migrations, one concern a file, each with its rollback; applied with yoyo by ``runwarden migrate``."""
