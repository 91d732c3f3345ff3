"""Runs behind the tables, their records, and the tables themselves."""
