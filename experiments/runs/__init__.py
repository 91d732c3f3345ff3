"""What we train: the runs behind the tables, and their records."""
