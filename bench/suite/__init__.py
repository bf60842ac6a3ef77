"""The benchmark suite: unmodified programs side by side with the kernel's own swap."""
