"""What `foreword doctor` prints: the installation (`report`) and a self-check on a tiny model (`checks`)."""
