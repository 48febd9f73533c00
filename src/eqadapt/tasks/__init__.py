"""Tasks: how a batch becomes inputs, a loss and metrics, and how a group acts on targets."""
