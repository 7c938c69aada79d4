"""How a step is computed. No module of this room names a rule."""
