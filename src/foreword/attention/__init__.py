"""The mathematics of attention with prefixes. It works on tensors and knows no model.

call        what a model asks of one attention layer
backends    kernels that return an output and its log-sum-exp
segments    runs of queries that see the same run of keys
sharing     which rows of a batch use which prefix, and the concatenated prefixes
merge       the two-part product and its gradient (the fast path)
decoding    the same product for one new token per row on CPU
additions   what gated and memory prefixes add
reference   concatenation with an explicit mask; tests compare the fast path with it
"""
