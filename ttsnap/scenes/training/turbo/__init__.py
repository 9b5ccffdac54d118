"""The few-step model: the base model and its guidance, straightened so that a few calls without guidance are enough."""
