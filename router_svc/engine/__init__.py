"""The engine of an attention rank: scheduler, paged KV cache, prefix reuse, sampler and the step loop.

The scheduler and the page book-keeping know no torch, no Ray and no clock (`now` is passed in).
"""
