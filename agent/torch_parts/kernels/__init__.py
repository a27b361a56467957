"""Kernels in Triton that more than one part uses; imported only where tensors are on a GPU."""
