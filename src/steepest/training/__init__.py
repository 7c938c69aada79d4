"""How a task is trained: an optimizer with its parts, and the loop that they act in."""
