"""Tasks: what is asked of the model. `lm` is language modelling of a target after a prompt."""
