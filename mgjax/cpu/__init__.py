"""What CPUs need to be fast: compiler options and the allocator."""
