"""Kernels in C for CPUs, built on the machine that runs them, and how they are found and called."""
