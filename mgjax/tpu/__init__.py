"""What TPUs need of a network's layers."""
