"""What CPUs need to be fast: compiler options, the allocator, convolutions."""
