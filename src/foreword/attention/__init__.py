"""The mathematics of attention with prefixes: tensors only, nothing of a model.

call        what a model asks of one attention layer
backends    kernels that return an output and its log-sum-exp
segments    queries and keys that belong together, as kernels take them
sharing     which rows of a batch use which prefix, and the prefixes laid end to end
merge       the two-part product and its gradient (the fast path)
decoding    the same for one new token per row on CPU
additions   what gated and memory prefixes add
reference   concatenation with an explicit mask (what the fast path is held to)
"""
