"""The output of `foreword doctor`: the installation (`report`) and a self-check on a tiny model (`checks`)."""
